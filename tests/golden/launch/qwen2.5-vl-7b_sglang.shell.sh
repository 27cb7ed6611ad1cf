# Qwen/Qwen2.5-VL-7B-Instruct (bf16) on sglang 0.5.23, l40s
# note: memory is planned with vLLM's formulas; SGLang's reserve differs by some GiB
# --model-path Qwen/Qwen2.5-VL-7B-Instruct          what to load
# --context-length 7168                             500 tokens of text + 5,548 of images or videos + 1,000 answer = 7,048, rounded up to 1,024
# --mem-fraction-static 0.80                        share for weights and KV; the tower's activations live outside it
# --max-running-requests 8                          4 at once on each copy is planned
# --chunked-prefill-size 2048                       tokens of one prefill step, as planned
# --tp-size 1                                       GPUs that hold one copy
# --limit-mm-data-per-request {"image":2,"video":0}  as planned; more in one request is refused
# --mm-process-config {"image":{"max_pixels":2173248}}  the largest planned image, 2,772 tokens: a larger one is shrunk to it, instead of exhausting memory that the plan did not count
# --allowed-media-domains media.invalid             no address is fetched (SSRF); unset would allow all
# --host 127.0.0.1                                  this machine only; put a proxy with authentication in front before opening it
# --port 8000                                       where it listens

python3 -m sglang.launch_server \
  --model-path Qwen/Qwen2.5-VL-7B-Instruct \
  --context-length 7168 \
  --mem-fraction-static 0.80 \
  --max-running-requests 8 \
  --chunked-prefill-size 2048 \
  --tp-size 1 \
  --limit-mm-data-per-request '{"image":2,"video":0}' \
  --mm-process-config '{"image":{"max_pixels":2173248}}' \
  --allowed-media-domains media.invalid \
  --host 127.0.0.1 \
  --port 8000
