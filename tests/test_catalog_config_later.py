"""config.json of Qwen3-VL, Qwen3.5 and the first generation: any size, every key accounted for."""

import json

import pytest

from qvl.catalog.config import read_config
from qvl.catalog.models import config_of
from qvl.errors import ConfigError


def qwen3_vl(**text):
    """As the 4B's file on the hub is laid out."""
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0.dev0",
        "text_config": {
            "model_type": "qwen3_vl_text",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "dtype": "bfloat16",
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 2560,
            "initializer_range": 0.02,
            "intermediate_size": 9728,
            "max_position_embeddings": 262144,
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
                "rope_type": "default",
            },
            "rope_theta": 5000000,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": 151936,
            **text,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "deepstack_visual_indexes": [5, 11, 17],
            "depth": 24,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 1024,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 4096,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": 2560,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def qwen3_5(layers=8, **text):
    """A size that is in no catalogue, in transformers 5's layout."""
    return {
        "model_type": "qwen3_5",
        "tie_word_embeddings": False,
        "transformers_version": "5.2.0",
        "text_config": {
            "model_type": "qwen3_5_text",
            "vocab_size": 248320,
            "hidden_size": 1536,
            "intermediate_size": 4096,
            "num_hidden_layers": layers,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "hidden_act": "silu",
            "max_position_embeddings": 262144,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000000,
                "partial_rotary_factor": 0.25,
                "mrope_section": [11, 11, 10],
                "mrope_interleaved": True,
            },
            "full_attention_interval": 4,
            "attn_output_gate": True,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "mtp_num_hidden_layers": 1,
            "mamba_ssm_dtype": "float32",
            **text,
        },
        "vision_config": {
            "model_type": "qwen3_5",
            "depth": 12,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_heads": 12,
            "num_position_embeddings": 2304,
            "out_hidden_size": 1536,
            "patch_size": 16,
            "deepstack_visual_indexes": [],
        },
    }


def first_generation():
    return {
        "model_type": "qwen",
        "attn_dropout_prob": 0.0,
        "bf16": True,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "kv_channels": 128,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 8192,
        "no_bias": True,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "onnx_safe": None,
        "rotary_emb_base": 10000,
        "seq_length": 2048,
        "tie_word_embeddings": False,
        "use_dynamic_ntk": True,
        "use_flash_attn": False,
        "use_logn_attn": True,
        "vocab_size": 151936,
        "eos_token_id": 151643,
        "visual": {
            "heads": 16,
            "image_size": 448,
            "image_start_id": 151857,
            "layers": 48,
            "mlp_ratio": 4.9231,
            "output_dim": 4096,
            "patch_size": 14,
            "width": 1664,
        },
    }


def test_a_qwen3_vl_file_reads_to_the_catalogue_shape():
    read = read_config(qwen3_vl())
    known = config_of("qwen3-vl-4b")
    assert read.text == known.text
    assert read.vision == known.vision
    assert read.eos_token_ids == (151645,)


def test_head_dim_is_taken_from_the_file_not_derived():
    config = read_config(qwen3_vl())
    assert config.text.head_dim * config.text.num_attention_heads != config.text.hidden_size


def test_the_first_generation_file_reads_to_the_catalogue_shape():
    read = read_config(first_generation())
    known = config_of("qwen-vl-chat")
    assert (read.text, read.vision) == (known.text, known.vision)
    assert read.image_token_id == 151859


def test_a_text_only_qwen_is_not_a_qwen_vl():
    raw = first_generation()
    del raw["visual"]
    with pytest.raises(ConfigError, match="text-only"):
        read_config(raw)


def test_a_hybrid_file_of_an_unknown_size_keeps_a_cache_on_every_fourth_layer():
    config = read_config(qwen3_5())
    assert config.text.full_attention_layers == (3, 7)
    assert config.text.rotary_dim == 64
    assert (config.image_token_id, config.video_token_id) == (248056, 248057)


def test_explicit_layer_types_win_over_the_interval():
    kinds = ["full_attention"] * 2 + ["linear_attention"] * 6
    assert read_config(qwen3_5(layer_types=kinds)).text.full_attention_layers == (0, 1)


def test_layer_types_of_the_wrong_length_are_named_with_both_numbers():
    with pytest.raises(ConfigError, match="3 layer_types for 8 layers"):
        read_config(qwen3_5(layer_types=["full_attention"] * 3))


def test_an_unknown_kind_of_layer_is_named():
    with pytest.raises(ConfigError, match="sparse_attention"):
        read_config(qwen3_5(layer_types=["sparse_attention"] * 8))


def test_qwen3_5_with_deepstack_is_refused():
    raw = qwen3_5()
    raw["vision_config"]["deepstack_visual_indexes"] = [3]
    with pytest.raises(ConfigError, match="no DeepStack"):
        read_config(raw)


def test_a_mixture_reads_its_experts():
    raw = qwen3_vl(
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[],
    )  # fmt: skip
    raw["model_type"] = "qwen3_vl_moe"
    text = read_config(raw).text
    assert (text.num_experts, text.num_experts_per_tok, text.moe_intermediate_size) == (128, 8, 768)


def test_a_mixture_without_its_expert_count_says_so():
    raw = qwen3_vl(num_experts_per_tok=8, moe_intermediate_size=768)
    raw["model_type"] = "qwen3_vl_moe"
    with pytest.raises(ConfigError, match="missing num_experts"):
        read_config(raw)


def test_keys_that_are_not_known_are_passed_over_and_named():
    raw = qwen3_vl(turbo_mode=True) | {"unsloth_version": "2025.11.1"}
    raw["vision_config"]["turbo_tower"] = 1
    config = read_config(raw)
    assert config == read_config(qwen3_vl())
    assert config.unread == ("unsloth_version", "text_config.turbo_mode", "vision_config.turbo_tower")


def test_a_key_of_another_generation_that_changes_the_computation_is_refused():
    raw = qwen3_vl()
    raw["vision_config"]["window_size"] = 112
    with pytest.raises(ConfigError, match="vision_config: window_size 112 changes what is computed"):
        read_config(raw)
    with pytest.raises(ConfigError, match="attn_output_gate True changes what is computed"):
        read_config(qwen3_vl(attn_output_gate=True))


def test_several_missing_keys_are_reported_at_once():
    raw = qwen3_vl()
    del raw["text_config"]["head_dim"], raw["text_config"]["vocab_size"]
    with pytest.raises(ConfigError, match=r"missing .*head_dim.*vocab_size|missing .*vocab_size.*head_dim"):
        read_config(raw)


def test_a_tower_that_does_not_fit_the_text_model_is_refused_with_both_widths():
    with pytest.raises(ConfigError, match=r"2560.*2048"):
        read_config(qwen3_vl(hidden_size=2048))


def test_a_yarn_rope_is_refused_by_name():
    rope = {"rope_type": "yarn", "factor": 4.0, "mrope_section": [24, 20, 20]}
    with pytest.raises(ConfigError, match="yarn"):
        read_config(qwen3_vl(rope_scaling=rope))


def test_sections_that_do_not_fill_the_rotated_dims_are_refused():
    rope = {"rope_type": "default", "mrope_section": [16, 24, 20]}
    with pytest.raises(ConfigError, match=r"16, 24, 20.*64"):
        read_config(qwen3_vl(rope_scaling=rope))


def test_a_file_without_its_vision_part_is_refused():
    raw = qwen3_vl()
    del raw["vision_config"]
    with pytest.raises(ConfigError, match="vision_config is missing"):
        read_config(raw)


def test_a_file_that_is_not_nested_json_ends_in_a_config_error(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "qwen3_vl", "text_config": 7, "vision_config": []}))
    with pytest.raises(ConfigError):
        read_config(path)


def test_the_towers_rotation_as_transformers_5_23_writes_it_is_read_and_any_other_refused():
    raw = qwen3_vl()
    written = {"rope_theta": 10000.0, "rope_type": "axial"}
    raw["vision_config"] |= {"rope_parameters": written}
    assert read_config(raw) == read_config(qwen3_vl())
    raw["vision_config"] |= {"rope_parameters": written | {"rope_type": "default"}}
    with pytest.raises(ConfigError, match=r"vision_config: rope_parameters is .*default"):
        read_config(raw)
