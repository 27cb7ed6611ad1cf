# Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf (q4_k_m) on llama.cpp, rtx3060
# note: llama.cpp stores int4 as q4_k_m
# note: file names are those of your conversion or download: put the real ones in
# --model Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf       the language model's file
# --mmproj mmproj-Qwen2.5-VL-7B-Instruct-F16.gguf  the vision tower's file, kept in 16 bits
# --ctx-size 7168                                  500 tokens of text + 5,548 of images or videos + 1,000 answer = 7,048, rounded up to 1,024, times 1 slot(s): the size is shared by all
# --parallel 1                                     requests at once
# --n-gpu-layers 999                               all layers on the device
# --flash-attn on                                  without it one large image takes tens of GiB
# --image-max-tokens 2772                          the largest planned image, 2,772 tokens: a larger one is shrunk to it, instead of exhausting memory that the plan did not count
# --image-min-tokens 1024                          boxes want about 1,024 tokens an image (llama.cpp issue 16842)
# --host 127.0.0.1                                 this machine only; put a proxy with authentication in front before opening it
# --port 8000                                      where it listens

llama-server \
  --model Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf \
  --mmproj mmproj-Qwen2.5-VL-7B-Instruct-F16.gguf \
  --ctx-size 7168 \
  --parallel 1 \
  --n-gpu-layers 999 \
  --flash-attn on \
  --image-max-tokens 2772 \
  --image-min-tokens 1024 \
  --host 127.0.0.1 \
  --port 8000
