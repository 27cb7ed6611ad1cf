# Qwen/Qwen2.5-VL-7B-Instruct (bf16) on vllm 0.8.2, l40s
# WARNING: vLLM 0.8.2 fetches any address a request names (CVE-2025-6242): use 0.11.0 or later, or cut the server off from your network
# --max-model-len 7168                          500 tokens of text + 5,548 of images or videos + 1,000 answer = 7,048, rounded up to 1,024
# --gpu-memory-utilization 0.9                  share of the whole card that vLLM takes, weights included; the plan fits in it
# --max-num-seqs 8                              4 at once on each copy is planned; fewer seats, fewer graphs
# --max-num-batched-tokens 2048                 tokens of one prefill step, and the floor of the encoder's budget; the plan's own figure
# --tensor-parallel-size 1                      one GPU holds a copy
# --limit-mm-per-prompt image=2,video=0         2 image(s) and 0 video(s) a request; profiling reserves for that, though at the largest size the processor may yield
# --mm-processor-kwargs {"max_pixels":2173248}  the largest planned image, 2,772 tokens: a larger one is shrunk to it, instead of exhausting memory that the plan did not count
# --host 127.0.0.1                              this machine only; put a proxy with authentication in front before opening it
# --port 8000                                   where it listens

vllm serve Qwen/Qwen2.5-VL-7B-Instruct \
  --max-model-len 7168 \
  --gpu-memory-utilization 0.9 \
  --max-num-seqs 8 \
  --max-num-batched-tokens 2048 \
  --tensor-parallel-size 1 \
  --limit-mm-per-prompt image=2,video=0 \
  --mm-processor-kwargs '{"max_pixels":2173248}' \
  --host 127.0.0.1 \
  --port 8000
