# Qwen/Qwen2.5-VL-72B-Instruct (bf16) on vllm 0.32, 4xa100
# VLLM_MEDIA_URL_ALLOW_REDIRECTS                    a redirect would lead around the list of hosts
# --max-model-len 7168                              500 tokens of text + 5,548 of images or videos + 1,000 answer = 7,048, rounded up to 1,024
# --gpu-memory-utilization 0.9                      share of the whole card that vLLM takes, weights included; the plan fits in it
# --max-num-seqs 8                                  4 at once on each copy is planned; fewer seats, fewer graphs
# --max-num-batched-tokens 2048                     tokens of one prefill step, and the floor of the encoder's budget; the plan's own figure
# --tensor-parallel-size 4                          weights and KV over 4 GPUs
# --limit-mm-per-prompt {"image":{"count":2,"width":1240,"height":1754},"video":0}  2 image(s) and 0 video(s) a request; profiling reserves for that at the planned sizes, not for the worst case
# --mm-processor-kwargs {"max_pixels":2173248}      the largest planned image, 2,772 tokens: a larger one is shrunk to it, instead of exhausting memory that the plan did not count
# --allowed-media-domains media.invalid             no address is fetched (SSRF): send images inside the request. An empty list would allow all
# --host 127.0.0.1                                  this machine only; put a proxy with authentication in front before opening it
# --port 8000                                       where it listens

VLLM_MEDIA_URL_ALLOW_REDIRECTS=0 \
  vllm serve Qwen/Qwen2.5-VL-72B-Instruct \
  --max-model-len 7168 \
  --gpu-memory-utilization 0.9 \
  --max-num-seqs 8 \
  --max-num-batched-tokens 2048 \
  --tensor-parallel-size 4 \
  --limit-mm-per-prompt '{"image":{"count":2,"width":1240,"height":1754},"video":0}' \
  --mm-processor-kwargs '{"max_pixels":2173248}' \
  --allowed-media-domains media.invalid \
  --host 127.0.0.1 \
  --port 8000
