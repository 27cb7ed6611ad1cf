"""How many GPUs one copy takes, and how many copies: the narrowest legal cut that comes near the best rate."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from qvl.catalog.devices import Hardware
from qvl.catalog.engines import Engine
from qvl.errors import CapacityError, PlanError
from qvl.plan.capacity import Capacity, capacity_of_copies
from qvl.plan.engines import ENGINES
from qvl.plan.evaluate import FitResult, evaluate
from qvl.plan.fit import fit
from qvl.plan.launch.request import LaunchRequest
from qvl.plan.memory import Precision, Shards, check_precision, stored_precision
from qvl.plan.request import FitRequest
from qvl.plan.split import best_split, legal_splits, split_problems

# Share of the best bound that a narrower cut must reach to be preferred. vLLM's recipes run 7B as four copies
# on four A100 and 72B cut over four; both follow from any share between 0.1 and 0.9.
NEAR_BEST = 0.7


def _one_copy(
    request: LaunchRequest, version: str, precision: str, shards: Shards, gpus: int, replicas: int
) -> FitRequest:
    at_once = ceil(request.workload.concurrency / replicas)
    record = ENGINES[request.engine.strip().lower().partition("@")[0]]
    engine = record.planned_as or record.name
    return replace(
        request,
        name=request.model.name if request.model else "",
        workload=replace(request.workload, concurrency=at_once),
        engine=f"{engine}@{version}" if record.tensor_parallel and version else engine,
        precision=precision,
        hardware=Hardware(request.hardware.device, gpus),
        max_num_seqs=max(8, at_once),
        expert_parallel=shards.expert_parallel,
        vision=shards.vision,
    )


def place(request: LaunchRequest, engine: Engine, version: str, precision: str) -> tuple[FitResult, int]:
    """The narrowest legal cut that holds the work and whose copies together come near the best rate there is.

    Copies need no all-reduce, but a copy that weights fill to the brim answers few at once. The planner's
    bound is kind to wide cuts (links at their peak, no waiting), so a wider one must promise a good deal more.
    """
    count, forced = request.hardware.count, request.tensor_parallel_size

    def planned(shards: Shards, gpus: int, replicas: int) -> FitRequest:
        return _one_copy(request, version, precision, shards, gpus, replicas)

    def accept(asked: FitRequest) -> FitResult:
        result = evaluate(asked)
        if result.setup.problems:
            raise PlanError("; ".join(result.setup.problems))
        if not result.fits:
            raise CapacityError(_too_large(request, asked))
        return result

    record = ENGINES[engine.name]
    if not ENGINES[record.planned_as or record.name].tensor_parallel:
        if forced and forced > 1:
            raise PlanError(f"{engine.name} has no tensor parallelism as planned here: use vllm or sglang")
        return accept(planned(Shards(), 1 if record.one_device else count, 1)), 1
    legal_as = check_precision(precision) if precision else stored_precision(request.config)
    may_copy = "--mm-encoder-tp-mode" not in engine.features or engine.has("--mm-encoder-tp-mode", version)
    if forced:
        shards = best_split(
            request.config, legal_as, forced, any_vision=may_copy, expert_parallel=request.expert_parallel
        )
        if shards is None:
            raise PlanError(_illegal(request, legal_as, forced))
        if count % forced:
            sizes = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
            raise PlanError(f"{count} GPUs do not divide into replicas of {forced}: use {sizes}")
        return accept(planned(shards, forced, count // forced)), count // forced
    last: FitRequest | None = None
    candidates: list[tuple[Capacity, FitRequest]] = []
    for gpus in (n for n in range(1, count + 1) if count % n == 0):
        cut = best_split(request.config, legal_as, gpus, any_vision=may_copy)
        if cut is None:
            continue
        last = planned(cut, gpus, count // gpus)
        result = evaluate(last)
        if result.setup.problems:
            return accept(last), count // gpus
        if result.fits:
            pace = capacity_of_copies(last, count // gpus)
            if pace:
                candidates.append((pace, last))
    if candidates:
        enough = NEAR_BEST * max(pace.requests_per_s for pace, _ in candidates)
        pace, chosen = next(c for c in candidates if c[0].requests_per_s >= enough)
        return accept(chosen), pace.replicas
    assert last is not None, "one GPU is always a legal cut"
    text = _too_large(request, last)
    if count > 1 and best_split(request.config, legal_as, count, any_vision=may_copy) is None:
        text += f". More GPUs a copy are not legal: {_illegal(request, legal_as, count)}"
    raise CapacityError(text)


def _illegal(request: LaunchRequest, precision: Precision, gpus: int) -> str:
    """Why a cut is not legal, and the nearest that is: without expert parallelism, and with it if that is nearer."""
    name = request.model.name if request.model else request.config.family
    shards = Shards(gpus, request.expert_parallel, "replicate")
    why = "; ".join(split_problems(request.config, precision, shards))
    legal = legal_splits(request.config, precision, 2 * gpus)
    plain = [s.tensor for s in legal if not s.expert_parallel]
    near = min(plain, key=lambda n: (abs(n - gpus), n))
    text = f"{name} in {precision} can't be cut over {gpus} GPUs: {why}. Nearest legal: {near}"
    if any(s.expert_parallel and s.tensor == gpus for s in legal):
        text += f", or {gpus} with --expert-parallel"
    return text


def _too_large(request: LaunchRequest, asked: FitRequest) -> str:
    """What is missing, and the smallest changes that help; precisions only as far as weights are published."""
    result = fit(asked)
    published = {c.precision for c in request.model.checkpoints} if request.model else set()
    useful = [
        c.option
        for c in result.changes
        if not c.option.startswith("--precision") or c.option.split()[1] in published or not request.model
    ]
    return result.verdict + (f". Any of these helps: {', or '.join(useful[:4])}" if useful else "")
