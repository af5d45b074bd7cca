"""`fourbee plan`: what a model needs, what fits, and how fast it will be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fourbee.cli.options import Quantize

if TYPE_CHECKING:
    from fourbee.benchmarks.gpus import Gpu
    from fourbee.benchmarks.pace import Pace
    from fourbee.benchmarks.plan import Wish
    from fourbee.benchmarks.roofline import Limits
    from fourbee.engine.ledger import Setup


Model = Annotated[
    str | None,
    typer.Argument(
        help="A checkpoint folder, a GGUF file or the id of a pulled model; of its files only "
        "config.json or the GGUF header is read. Default: the embedded fourbee-mini."
    ),
]
Shape = Annotated[
    str, typer.Option(help="Instead of a model, a published shape: 0.6B, 1.7B, 4B or 8B.")
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Plan for so much memory, such as 24GB. Default: what this machine has to spare, and "
        "of what the weights leave one half for keys and values, as serve does it."
    ),
]
Context = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of each user, answers included. Default: what fits."),
]
Users = Annotated[int, typer.Option(min=1, help="How many contexts are held at once.")]
KvType = Annotated[
    str,
    typer.Option(help="What keys and values are kept in: auto, float32, bfloat16, int8, int4."),
]
GpuName = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        help="Plan for a GPU by its name, such as 4090D, L4 or H100: its memory, and times "
        "predicted from its data sheet. fourbee runs GPUs in bfloat16.",
    ),
]
Measure = Annotated[
    bool,
    typer.Option("--measure/--no-measure", help="Time some layers here, or leave the times out."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads to time with; default: all cores.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document only.")]


def plan(
    model: Model = None,
    shape: Shape = "",
    memory: Memory = None,
    context: Context = None,
    users: Users = 1,
    quantize: Quantize = "none",
    kv_type: KvType = "auto",
    gpu: GpuName = None,
    measure: Measure = True,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Say what a model needs, what context fits, and how fast it will be, without loading it.

    Memory is exact for weights, keys and values. Times come from timing a few layers of the
    model's widths for some seconds (no download is needed), or from a GPU's data sheet; they are
    for a machine as busy as it is now, and for prompts of which nothing is kept from before.

    fourbee plan --shape 4B --quantize int4 --memory 16GB

    fourbee plan --shape 4B --quantize int4 --context 32768 --users 4

    fourbee plan Qwen/Qwen3-0.6B --gpu 4090D
    """
    from fourbee.benchmarks.gpus import gpu_named
    from fourbee.benchmarks.plan import Wish, document, page, plan_memory
    from fourbee.foundation.errors import UsageError
    from fourbee.foundation.sizes import parse_size

    if model and shape:
        raise UsageError("--shape: expected a model or a shape, not both", "shape")
    card = gpu_named(gpu) if gpu else None
    if card and (quantize, kv_type) != ("none", "auto"):
        raise UsageError(
            f"--gpu {gpu}: fourbee runs GPUs in bfloat16: leave out --quantize and --kv-type", "gpu"
        )
    size = None if memory is None else parse_size(memory, "--memory")
    if card and size is None:
        size = card.memory
    setup, name = _setup(model, shape, quantize, kv_type, card)
    wish = Wish(setup, size, context, users)
    planned = plan_memory(wish)
    pace, most, how = _pace(wish, card, measure, threads)
    if json:
        from json import dumps

        typer.echo(dumps({"model": name, **document(wish, planned, pace, most, how)}))
    else:
        where = f"on a GPU {card.name}" if card else "on a CPU"
        typer.echo("\n".join(page(name, where, wish, planned, pace, most, how)))


def _setup(
    model: str | None, shape: str, quantize: str, kv_type: str, card: Gpu | None
) -> tuple[Setup, str]:
    """The model as it would be run, and what it is called."""
    from fourbee.engine.ledger import Setup
    from fourbee.kernels.backends import choose_backend

    if shape:
        from fourbee.benchmarks.shapes import shape_config

        config, formats, name = shape_config(shape), {}, f"the shape of Qwen3-{shape}"
    else:
        from fourbee.engine.checkpoint import open_checkpoint
        from fourbee.model.hub import EMBEDDED, resolve_model

        files = open_checkpoint(resolve_model(model))
        config, formats, name = files.config, dict(files.formats), model or EMBEDDED
    # Of a machine that has the kernels, whether this one has them or not.
    fits_native = config.head_dim % 16 == 0
    backend = "torch" if card else "native" if fits_native else "auto"
    chosen = choose_backend(backend, "cpu", "auto", config.head_dim)
    return Setup(config, chosen, "auto", quantize, kv_type, formats, card is not None), name


def _pace(
    wish: Wish, card: Gpu | None, measure: bool, threads: int | None
) -> tuple[Pace | None, Limits | None, str]:
    """How fast; the limits of this machine; what the times are."""
    from fourbee.kernels.backends import native_built

    batches = sorted({1, wish.batch})
    if card:
        from fourbee.benchmarks.gpus import COMPUTE_SHARE, MEMORY_SHARE, predicted_pace

        how = (
            f"a prediction, not measured: {COMPUTE_SHARE:.0%} of the products and "
            f"{MEMORY_SHARE:.0%} of the bandwidth on the data sheet of the {card.name}"
        )
        return predicted_pace(wish.setup, card, batches), None, how
    if not measure:
        return None, None, "not measured (--no-measure)"
    if wish.setup.backend != "native" or not native_built():
        return None, None, "not measured: the native kernels do not run this model here"
    from rich.console import Console
    from rich.progress import Progress

    from fourbee.benchmarks.pace import measured_pace
    from fourbee.benchmarks.roofline import limits

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("timing some layers", total=None)
        pace = measured_pace(
            wish.setup, batches, threads,
            lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
        bar.update(task, description="timing the machine", total=None)
        return pace, limits(), "predicted from layers of this model's widths, timed here just now"
