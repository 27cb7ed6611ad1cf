# Qwen/Qwen3-VL-30B-A3B-Instruct-FP8 (fp8) on vllm 0.32.0, 4xl40s: 2 copies of 2 GPU(s)
# VLLM_MEDIA_URL_ALLOW_REDIRECTS                    a redirect would lead around the list of hosts
# --max-model-len 6144                              500 tokens of text + 4,294 of images or videos + 1,000 answer = 5,794, rounded up to 1,024
# --gpu-memory-utilization 0.9                      share of the whole card that vLLM takes, weights included; the plan fits in it
# --max-num-seqs 8                                  2 at once on each copy is planned; fewer seats, fewer graphs
# --max-num-batched-tokens 2048                     tokens of one prefill step, and the floor of the encoder's budget; the plan's own figure
# --tensor-parallel-size 2                          weights and KV over 2 GPUs
# --data-parallel-size 2                            2 copies: no all-reduce between them, and by the plan's bounds near the best rate
# --enable-expert-parallel                          experts are dealt whole: else vLLM cuts their width over all 4 GPUs of all copies, not over 2
# --limit-mm-per-prompt {"image":{"count":2,"width":1240,"height":1754},"video":0}  2 image(s) and 0 video(s) a request; profiling reserves for that at the planned sizes, not for the worst case
# --mm-processor-kwargs {"size":{"shortest_edge":65536,"longest_edge":2196480}}  the largest planned image, 2,145 tokens: a larger one is shrunk to it, instead of exhausting memory that the plan did not count (areas, whatever the keys say)
# --allowed-media-domains media.invalid             no address is fetched (SSRF): send images inside the request. An empty list would allow all
# --host 127.0.0.1                                  this machine only; put a proxy with authentication in front before opening it
# --port 8000                                       where it listens

VLLM_MEDIA_URL_ALLOW_REDIRECTS=0 \
  vllm serve Qwen/Qwen3-VL-30B-A3B-Instruct-FP8 \
  --max-model-len 6144 \
  --gpu-memory-utilization 0.9 \
  --max-num-seqs 8 \
  --max-num-batched-tokens 2048 \
  --tensor-parallel-size 2 \
  --data-parallel-size 2 \
  --enable-expert-parallel \
  --limit-mm-per-prompt '{"image":{"count":2,"width":1240,"height":1754},"video":0}' \
  --mm-processor-kwargs '{"size":{"shortest_edge":65536,"longest_edge":2196480}}' \
  --allowed-media-domains media.invalid \
  --host 127.0.0.1 \
  --port 8000
