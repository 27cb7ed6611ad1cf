"""The table of docs/serve.md: what `qvl serve` does with each field of OpenAI's and vLLM's chat requests.

python benchmarks/serve_fields.py
"""

from __future__ import annotations

from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from qvl.serve.fields import IDLE, USUAL
from qvl.serve.schema import ChatRequest

# ChatCompletionRequest in vllm/entrypoints/openai/chat_completion/protocol.py at 002032e, read on 1 December 2026
VLLM = """messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice reasoning_effort
thinking_token_budget include_reasoning parallel_tool_calls user use_beam_search top_k min_p repetition_penalty
watermarking length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids
allowed_token_ids bad_words echo add_generation_prompt continue_final_message add_special_tokens documents
chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs structured_outputs priority request_id
session_id return_tokens_as_token_ids return_token_ids routed_experts_prompt_start return_token_offsets
return_prompt_text return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection
stream_interval""".split()
OPENAI = [*CompletionCreateParamsBase.__annotations__, "stream"]


def verdict(field: str) -> str:
    if field in ChatRequest.model_fields:
        return "done"
    if field in IDLE:
        return f"accepted without effect: {IDLE[field]}"
    if field in USUAL:
        values = " or ".join(f"`{_json(value)}`" for value in USUAL[field])
        return f"accepted as {values}, otherwise refused" if values else "refused"
    raise LookupError(f"{field}: neither done, accepted nor refused")


def _json(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value).replace("'", '"')


def table() -> str:
    rows = ["| field | of | |", "|---|---|---|"]
    for field in sorted({*VLLM, *OPENAI}):
        source = " and ".join(n for n, names in (("OpenAI", OPENAI), ("vLLM", VLLM)) if field in names)
        rows.append(f"| `{field}` | {source} | {verdict(field)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
