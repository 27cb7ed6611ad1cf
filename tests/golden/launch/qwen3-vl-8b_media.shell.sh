# Qwen/Qwen3-VL-8B-Instruct (bf16) on vllm 0.32.0, l40s
# VLLM_MEDIA_URL_ALLOW_REDIRECTS                    a redirect would lead around the list of hosts
# --max-model-len 6144                              500 tokens of text + 4,294 of images or videos + 1,000 answer = 5,794, rounded up to 1,024
# --gpu-memory-utilization 0.9                      share of the whole card that vLLM takes, weights included; the plan fits in it
# --max-num-seqs 8                                  4 at once on each copy is planned; fewer seats, fewer graphs
# --max-num-batched-tokens 2048                     tokens of one prefill step, and the floor of the encoder's budget; the plan's own figure
# --tensor-parallel-size 1                          one GPU holds a copy
# --limit-mm-per-prompt {"image":{"count":2,"width":1240,"height":1754},"video":0}  2 image(s) and 0 video(s) a request; profiling reserves for that at the planned sizes, not for the worst case
# --mm-processor-kwargs {"size":{"shortest_edge":65536,"longest_edge":2196480}}  the largest planned image, 2,145 tokens: a larger one is shrunk to it, instead of exhausting memory that the plan did not count (areas, whatever the keys say)
# --allowed-local-media-path /srv/pictures          as asked: requests may name files in it
# --allowed-media-domains a.example.org             as asked: requests may name addresses there
# b.example.org                                     and there
# --host 127.0.0.1                                  this machine only; put a proxy with authentication in front before opening it
# --port 8000                                       where it listens

VLLM_MEDIA_URL_ALLOW_REDIRECTS=0 \
  vllm serve Qwen/Qwen3-VL-8B-Instruct \
  --max-model-len 6144 \
  --gpu-memory-utilization 0.9 \
  --max-num-seqs 8 \
  --max-num-batched-tokens 2048 \
  --tensor-parallel-size 1 \
  --limit-mm-per-prompt '{"image":{"count":2,"width":1240,"height":1754},"video":0}' \
  --mm-processor-kwargs '{"size":{"shortest_edge":65536,"longest_edge":2196480}}' \
  --allowed-local-media-path /srv/pictures \
  --allowed-media-domains a.example.org b.example.org \
  --host 127.0.0.1 \
  --port 8000
