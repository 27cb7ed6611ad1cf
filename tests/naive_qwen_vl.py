"""The first generation written a second time, slowly: the oracle of its tests. Imports nothing of ours.

float64 numpy, one picture and one head after the other. Written from the
Qwen-VL report and descriptions of the published code; `weights` has the published names, as float64 arrays.
Everything is computed again for every token: nothing is cached, nothing is packed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]
V = "transformer.visual"


def layer_norm(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


# ------------------------------------------------------------------------------------------------ the picture


def cubic(t: float) -> float:
    """Keys' kernel with a = -0.75, the one of torch's bicubic interpolation."""
    a, t = -0.75, abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    if t < 2:
        return a * (t**3 - 5 * t**2 + 8 * t - 4)
    return 0.0


def stretch_matrix(source: int, target: int) -> np.ndarray:
    """(target, source): how much of each old place is in each new one, pixel centres aligned, edges repeated."""
    matrix = np.zeros((target, source))
    for i in range(target):
        centre = (i + 0.5) * source / target - 0.5
        first = math.floor(centre)
        for k in range(first - 1, first + 3):
            matrix[i, min(max(k, 0), source - 1)] += cubic(centre - k)
    return matrix


def stretch(table: np.ndarray, places: int) -> np.ndarray:
    source, target = math.isqrt(len(table)), math.isqrt(places)
    if source == target:
        return table
    matrix = stretch_matrix(source, target)
    grid = table.reshape(source, source, -1)
    return np.einsum("is,jt,stc->ijc", matrix, matrix, grid).reshape(places, -1)


def features(picture: np.ndarray, weights: Weights, config: dict[str, Any]) -> np.ndarray:
    """(3, S, S) normalised pixels → (queries, width) rows for the text model."""
    visual = config["visual"]
    patch, heads, layers = visual["patch_size"], visual["heads"], visual["layers"]
    side = picture.shape[1] // patch
    x = np.zeros((side * side, visual["width"]))
    kernel = weights[f"{V}.conv1.weight"]
    for row in range(side):
        for column in range(side):
            pixels = picture[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            x[row * side + column] = (kernel * pixels).sum((1, 2, 3))
    x = x + stretch(weights[f"{V}.positional_embedding"], len(x))
    x = layer_norm(x, weights, f"{V}.ln_pre")
    for i in range(layers):
        block = f"{V}.transformer.resblocks.{i}"
        mixed = linear(layer_norm(x, weights, f"{block}.ln_1"), weights, f"{block}.attn.in_proj")
        size = visual["width"] // heads
        outputs = []
        for head in range(heads):  # q, k and v of one head lie side by side
            q, k, v = (mixed[:, (3 * head + j) * size : (3 * head + j + 1) * size] for j in range(3))
            outputs.append(softmax(q @ k.T / math.sqrt(size)) @ v)
        x = x + linear(np.concatenate(outputs, 1), weights, f"{block}.attn.out_proj")
        inner = gelu(linear(layer_norm(x, weights, f"{block}.ln_2"), weights, f"{block}.mlp.c_fc"))
        x = x + linear(inner, weights, f"{block}.mlp.c_proj")
    return adapt(x, weights)


def adapt(x: np.ndarray, weights: Weights) -> np.ndarray:
    """Patches (P, tower width) → (queries, width): cross attention, norm, projection."""
    pool = f"{V}.attn_pool"
    values = layer_norm(linear(x, weights, f"{pool}.kv_proj"), weights, f"{pool}.ln_kv")
    queries = layer_norm(weights[f"{pool}.query"], weights, f"{pool}.ln_q")
    table = weights[f"{pool}.pos_embed"]
    width = values.shape[1]
    into, bias = weights[f"{pool}.attn.in_proj_weight"], weights[f"{pool}.attn.in_proj_bias"]
    projected = []
    for j, part in enumerate((queries + table, values + stretch(table, len(values)), values)):
        rows = slice(j * width, (j + 1) * width)
        projected.append(part @ into[rows].T + bias[rows])
    outputs = []
    for head in range(width // 128):
        q, k, v = (part[:, head * 128 : (head + 1) * 128] for part in projected)
        outputs.append(softmax(q @ k.T / math.sqrt(128)) @ v)
    pooled = linear(np.concatenate(outputs, 1), weights, f"{pool}.attn.out_proj")
    return layer_norm(pooled, weights, f"{V}.ln_post") @ weights[f"{V}.proj"]


# --------------------------------------------------------------------------------------------------- the text


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def alpha(prompt_length: int, config: dict[str, Any]) -> float:
    """Dynamic NTK: 1 up to seq_length, and for a longer prompt 2 to the ceiling of log2(ratio) + 1, less one."""
    if not config["use_dynamic_ntk"]:
        return 1
    return max(2 ** math.ceil(math.log2(prompt_length / config["seq_length"]) + 1) - 1, 1)


def turn(x: np.ndarray, base: float) -> np.ndarray:
    """(T, size), one head of every token: element j rotated with element j + half by place * base ** (-2j / size)."""
    half = x.shape[1] // 2
    angle = np.outer(np.arange(len(x)), base ** (-2 * np.arange(half) / x.shape[1]))
    a, b = x[:, :half], x[:, half:]
    return np.concatenate((a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)), 1)


def logits(
    ids: list[int],
    pictures: list[np.ndarray],
    weights: Weights,
    config: dict[str, Any],
    prompt_length: int | None = None,
) -> np.ndarray:
    """(T, vocabulary) for a text whose `<imgpad>` rows are taken by the pictures' features, in order.

    prompt_length: what was there before the answer began, which decides how positions turn; None: all of it.
    """
    pad = config["visual"]["image_start_id"] + 2
    heads, size = config["num_attention_heads"], config["kv_channels"]
    stretch_by = alpha(prompt_length or len(ids), config)
    base = config["rotary_emb_base"] * stretch_by ** (size / (size - 2))
    x = weights["transformer.wte.weight"][ids]
    rows = iter(np.concatenate(pictures)) if pictures else iter(())
    for place, token in enumerate(ids):
        if token == pad:
            x[place] = next(rows)
    assert next(rows, None) is None
    for i in range(config["num_hidden_layers"]):
        block = f"transformer.h.{i}"
        mixed = linear(rms_norm(x, weights[f"{block}.ln_1.weight"]), weights, f"{block}.attn.c_attn")
        q, k, v = (part.reshape(len(x), heads, size) for part in np.split(mixed, 3, 1))
        later = np.triu(np.full((len(x), len(x)), -np.inf), 1)  # what a token may not see
        seen = np.zeros((len(x), heads, size))
        for head in range(heads):
            asks, keys = turn(q[:, head], base), turn(k[:, head], base)
            for place in range(config["seq_length"], len(x) if config["use_logn_attn"] else 0):
                asks[place] *= math.log(place + 1, config["seq_length"])
            seen[:, head] = softmax(asks @ keys.T / math.sqrt(size) + later) @ v[:, head]
        x = x + linear(seen.reshape(len(x), -1), weights, f"{block}.attn.c_proj")
        h = rms_norm(x, weights[f"{block}.ln_2.weight"])
        inner = linear(h, weights, f"{block}.mlp.w1") * silu(linear(h, weights, f"{block}.mlp.w2"))
        x = x + linear(inner, weights, f"{block}.mlp.c_proj")
    return rms_norm(x, weights["transformer.ln_f.weight"]) @ weights["lm_head.weight"].T


def greedy(
    ids: list[int], pictures: list[np.ndarray], weights: Weights, config: dict[str, Any], count: int
) -> list[int]:
    """The `count` likeliest next tokens, each with everything computed anew."""
    tokens: list[int] = []
    for _ in range(count):
        scores = logits([*ids, *tokens], pictures, weights, config, prompt_length=len(ids))[-1]
        tokens.append(int(scores.argmax()))
    return tokens
