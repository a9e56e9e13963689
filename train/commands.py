"""`medusa-train`: from a data folder to a trained ensemble and a report."""

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from model import version
from train.ablate import ablate as compare_ablations
from train.ablate_baselines import ablate_baselines
from train.ablate_parts import ablate_parts
from train.compare import compare_runs
from train.config import Recipe, load_recipe
from train.console import CACHE, DATA, OUT, CacheOption, DataOption, OutOption, console, progress, refusal, told
from train.contamination import marked, note
from train.crossvalidate import crossvalidate as run_every_turn
from train.dry_run import DryRun, dry_run
from train.emotion2vec import convert as convert_checkpoint
from train.errors import TrainError
from train.extraction import fill_cache
from train.planned_time import PlannedTime
from train.prepare import prepare
from train.report import read_results, render
from train.robustness_command import robustness
from train.run import evaluate_run, train_ensemble, train_members, train_meta_classifiers
from train.seeded_rows import SEEDS
from train.transfer_commands import adapt, fewshot, finetune

app = typer.Typer(help="Train a MEDUSA ensemble.", no_args_is_help=True, pretty_exceptions_enable=False)
results = Console()
"""Standard output: what a command was asked for. Everything else is told on standard error."""
_SEEDED: Final = {"parts": ablate_parts, "baselines": ablate_baselines}
"""Tables of `ablate` whose rows have several seeds -> what makes them."""
_TABLES: Final = ("recipe", *_SEEDED)

RecipeOption = Annotated[Path, typer.Option("--config", help="Recipe file.", exists=True, dir_okay=False)]
DeviceOption = Annotated[
    str,
    typer.Option(
        help='Where encoders run: "cpu", "cuda", or "auto": a GPU where there is one. Without it, where the recipe says.'
    ),
]
PartOption = Annotated[
    str,
    typer.Option(help="One of several disjoint parts, such as 2/4, for processes that fill one cache side by side."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Train nothing: tell what would be built, kept on disk and spent.")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(version.told("medusa-train"))
        raise typer.Exit


@app.callback()
def _program(
    show: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train a MEDUSA ensemble."""


def _load(path: Path) -> Recipe:
    try:
        return load_recipe(path)
    except TrainError as error:
        raise refusal(str(error)) from error


@app.command()
def features(
    config: RecipeOption,
    data: DataOption,
    cache: CacheOption = CACHE,
    device: DeviceOption = "",
    part: PartOption = "",
) -> None:
    """Extract the features of every clip, once.

    Example: medusa-train features --config recipes/default.toml --data data
    """
    recipe = _load(config)
    with progress() as (report, _), told():
        if part:
            count = fill_cache(recipe, data, cache, report, device, _part(part))
        else:
            count = len(prepare(recipe, data, cache, report, device).training.train)
    console.print(f"features of {count} {f'clips, part {part},' if part else 'training clips'} are in {cache}")


@app.command()
def convert(
    source: Annotated[str, typer.Option(help='A published emotion2vec: "path:FILE", "path:FOLDER" or "hub:ID".')],
    out: Annotated[Path, typer.Option(help="The folder to write; recipes name it.", file_okay=False)],
) -> None:
    """Make a folder that recipes can name of a published emotion2vec checkpoint. None of the checkpoint's code is run.

    Example: medusa-train convert --source hub:emotion2vec/emotion2vec_base --out models/emotion2vec-base
    """
    with told():
        layout = convert_checkpoint(source, out)
    told_of = f'kind = "speech-transformer", dim = {layout.dim}, sources = ["path:{out}"]'
    console.print(f"{out}: {told_of}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def run(
    config: RecipeOption,
    data: Annotated[Path | None, DATA] = None,
    out: Annotated[Path | None, OUT] = None,
    cache: CacheOption = CACHE,
    workers: int = 2,
    dry: DryRunOption = False,
) -> None:
    """Run everything: features, the four stages, evaluation, report. Start it again to continue where it stopped.

    Example: medusa-train run --config recipes/default.toml --data data --out runs/default
    """
    recipe = _load(config)
    if dry:
        with told():
            _show(dry_run(recipe, data))
        return
    if data is None or out is None:
        raise typer.BadParameter("needed, unless with --dry-run", param_hint="--data" if data is None else "--out")
    with progress() as (report, _), told():
        page = train_ensemble(recipe, data, cache, out, workers, report)
    console.print(f"checkpoint and report: {out} ({page})")


@app.command()
def crossvalidate(
    config: RecipeOption, data: DataOption, out: OutOption, cache: CacheOption = CACHE, workers: int = 2
) -> None:
    """Run the recipe once for every session or fold of speakers, each tested on in its turn, and put the results together.

    Start it again to continue where it stopped.

    Example: medusa-train crossvalidate --config recipes/iemocap.toml --data data --out runs/iemocap
    """
    recipe = _load(config)
    with progress() as (report, _), told():
        page = run_every_turn(recipe, data, cache, out, workers, report)
    console.print(f"all turns: {out} ({page})", markup=False, highlight=False, soft_wrap=True)


@app.command()
def members(
    config: RecipeOption, data: DataOption, out: OutOption, cache: CacheOption = CACHE, workers: int = 2
) -> None:
    """Train what is missing of every member: stages 1 and 2, on all speakers and without each fold.

    Example: medusa-train members --config recipes/default.toml --data data --out runs/default
    """
    recipe = _load(config)
    with progress() as (report, _), told():
        train_members(recipe, data, cache, out, workers, report)
    console.print(f"members: {out / 'members'}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def meta(config: RecipeOption, data: DataOption, out: OutOption, cache: CacheOption = CACHE) -> None:
    """Train the meta-classifiers on the members of a run, mix their soup and calibrate it: stages 3 and 4.

    Example: medusa-train meta --config recipes/default.toml --data data --out runs/default
    """
    recipe = _load(config)
    with progress() as (report, _), told():
        train_meta_classifiers(recipe, prepare(recipe, data, cache, report), out)
    console.print(f"meta-classifiers: {out / 'meta'}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def evaluate(config: RecipeOption, data: DataOption, out: OutOption, cache: CacheOption = CACHE) -> None:
    """Evaluate a run whose stages are done on speakers that none has seen, and write its checkpoint and report.

    Example: medusa-train evaluate --config recipes/default.toml --data data --out runs/default
    """
    recipe = _load(config)
    with progress() as (report, _), told():
        page = evaluate_run(recipe, prepare(recipe, data, cache, report), cache, out, report)
    console.print(f"checkpoint and report: {out} ({page})", markup=False, highlight=False, soft_wrap=True)


def _part(text: str) -> tuple[int, int]:
    number, slash, parts = text.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal()):
        raise typer.BadParameter(f"a part is written 2/4, the second of four, got {text!r}", param_hint="--part")
    return int(number), int(parts)


def _show(plan: DryRun) -> None:
    """Prints what a recipe would build, keep and take."""
    encoders = Table("encoder", "kind", "width", "parameters", "MB an hour of speech", title="Frozen encoders")
    for encoder in plan.encoders:
        count = "unknown" if encoder.parameters is None else f"{encoder.parameters:,}"
        encoders.add_row(encoder.name, encoder.kind, str(encoder.dim), count, f"{encoder.bytes_per_hour / 1e6:,.0f}")
    members = Table("member", "reads", "parameters", title="Members")
    for member in plan.members:
        members.add_row(member.name, ", ".join(member.modalities), f"{member.parameters:,}")
    members.add_row("all", f"{len(plan.members)} members", f"{sum(member.parameters for member in plan.members):,}")
    results.print(encoders, members)
    for corpus in plan.corpora:
        size = f"features of at most {corpus.feature_bytes / 1e9:.1f} GB"
        results.print(f"{corpus.name}: {corpus.clips:,} clips, {corpus.hours:.1f} h, {size}", markup=False)
    for name, why in plan.missing.items():
        results.print(f"{name}: not here ({why})", markup=False, soft_wrap=True)
    of, most = (" per hour of speech", ", at most") if plan.per_hour else ("", "")
    if plan.training is None:
        told_of = f"training: no time is told, because {plan.why_no_time}"
    else:
        told_of = f"stages 1 and 2: {_estimate(plan.training, of + most)}"
    results.print(told_of, markup=False, soft_wrap=True)
    if plan.extraction is None:
        told_of = f"extracting features: no time is told, because {plan.why_no_extraction}"
    else:
        told_of = f"passes of {', '.join(plan.timed)}: {_estimate(plan.extraction, of)}. Transcription is not in it"
    results.print(told_of, markup=False, soft_wrap=True)


def _estimate(planned: PlannedTime, of: str) -> str:
    hours = f"{planned.hours:,.0f}" if planned.hours >= 10 else f"{planned.hours:.2g}"
    basis = f"estimated from operations and the time of {planned.basis}"
    return f"roughly {hours} h{of}, in one process on {planned.device}; {basis}"


@app.command()
def report(out: OutOption) -> None:
    """Print the results of a finished run, and write its page and model card again from them.

    Example: medusa-train report --out runs/default
    """
    with told():
        page = render(out)
        evaluations = read_results(out)["evaluations"]
    for name, evaluation in evaluations.items():
        results.print(name, style="bold", markup=False)
        for system, score in evaluation["systems"].items():
            uar = score["uar"]
            figures = f"UAR {uar['value']:.3f} [{uar['low']:.3f}, {uar['high']:.3f}]"
            results.print(f"  {marked(system, score):32} {figures}", markup=False)
        if flatters := note(evaluation["systems"].values()):
            results.print(f"  {flatters}", markup=False, soft_wrap=True)
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A finished run.", file_okay=False)],
    second: Annotated[Path, typer.Argument(help="Another one, tested on the same clips.", file_okay=False)],
) -> None:
    """Say whether one run is better than another: the same clips, a paired bootstrap over speakers.

    Example: medusa-train compare runs/default runs/both
    """
    with told():
        found = compare_runs(first, second)
    results.print(f"first: {first}\nsecond: {second}", markup=False, highlight=False, soft_wrap=True)
    for row in found:
        gain = row.gain
        change = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        verdict = "better" if gain.low > 0 else "worse" if gain.high < 0 else "not told apart"
        results.print(
            f"{row.test}, {row.metric}: {row.clips} clips of {row.speakers} speakers", style="bold", markup=False
        )
        figures = f"  first {row.first}  second {row.second}  difference {change}: {verdict}"
        results.print(figures, markup=False, highlight=False, soft_wrap=True)


@app.command()
def ablate(
    config: RecipeOption,
    data: DataOption,
    out: OutOption,
    members: Annotated[
        str,
        typer.Option(
            help="Members to take things away from, or to hold against baselines, joined by commas; else those that the "
            "recipe names for it, or one of each set of modalities, at most four. "
            "Of parts: members whose modalities and sizes the rows have; else the first that reads several modalities."
        ),
    ] = "",
    table: Annotated[
        str,
        typer.Option(
            help='"recipe": one thing taken away at a time, and ways to join members; "parts": what VGA, EAAF and MICL add '
            'to cross-attention; "baselines": deep fusion against late fusion, one modality alone and a linear probe.'
        ),
    ] = "recipe",
    seeds: Annotated[
        int | None,
        typer.Option(
            help=f"Seeds of each row of the tables {' and '.join(_SEEDED)}, {SEEDS} if not given; no other table takes it.",
            min=1,
        ),
    ] = None,
    cache: CacheOption = CACHE,
    workers: int = 2,
) -> None:
    """Compare a recipe with itself, one thing taken away at a time, with baselines, or the second family's parts on its data.

    What a run in the same folder has trained is used.

    Example: medusa-train ablate --config recipes/default.toml --data data --out runs/default
    """
    if table not in _TABLES:
        raise typer.BadParameter(f"one of {', '.join(_TABLES)}, got {table!r}", param_hint="--table")
    if seeds is not None and table not in _SEEDED:
        raise typer.BadParameter(
            f"rows of the table {table!r} have the seeds that the recipe gives its members, and {seeds} would change nothing: "
            f"leave it out, or ask for --table {' or '.join(_SEEDED)}",
            param_hint="--seeds",
        )
    recipe, wanted = _load(config), tuple(name.strip() for name in members.split(",") if name.strip())
    with progress() as (report, _), told():
        if table in _SEEDED:
            page = _SEEDED[table](recipe, data, cache, out, workers, report, wanted, seeds or SEEDS)
        else:
            page = compare_ablations(recipe, data, cache, out, workers, report, wanted)
    console.print(f"comparisons: {page}", markup=False, highlight=False, soft_wrap=True)


for command in (finetune, fewshot, adapt, robustness):
    app.command()(command)
