# Qwen/Qwen3-VL-8B-Instruct (bf16) on vllm 0.32.0, h100
# VLLM_MEDIA_URL_ALLOW_REDIRECTS                    a redirect would lead around the list of hosts
# --max-model-len 14336                             500 tokens of text + 11,930 of images or videos + 1,000 answer = 13,430, rounded up to 1,024
# --gpu-memory-utilization 0.9                      share of the whole card that vLLM takes, weights included; the plan fits in it
# --max-num-seqs 8                                  2 at once on each copy is planned; fewer seats, fewer graphs
# --max-num-batched-tokens 8192                     tokens of one prefill step, and the floor of the encoder's budget; the plan's own figure
# --tensor-parallel-size 1                          one GPU holds a copy
# --limit-mm-per-prompt {"image":0,"video":{"count":1,"num_frames":120,"width":1280,"height":720}}  0 image(s) and 1 video(s) a request; profiling reserves for that at the planned sizes, not for the worst case
# --media-io-kwargs {"video":{"num_frames":120}}    the plan's 120 frames a video; vLLM's own default is 32 however long it is
# --allowed-media-domains media.invalid             no address is fetched (SSRF): send images inside the request. An empty list would allow all
# --host 127.0.0.1                                  this machine only; put a proxy with authentication in front before opening it
# --port 8000                                       where it listens

VLLM_MEDIA_URL_ALLOW_REDIRECTS=0 \
  vllm serve Qwen/Qwen3-VL-8B-Instruct \
  --max-model-len 14336 \
  --gpu-memory-utilization 0.9 \
  --max-num-seqs 8 \
  --max-num-batched-tokens 8192 \
  --tensor-parallel-size 1 \
  --limit-mm-per-prompt '{"image":0,"video":{"count":1,"num_frames":120,"width":1280,"height":720}}' \
  --media-io-kwargs '{"video":{"num_frames":120}}' \
  --allowed-media-domains media.invalid \
  --host 127.0.0.1 \
  --port 8000
