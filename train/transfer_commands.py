"""`medusa-train finetune`, `fewshot`, `adapt`: from a finished run to one for a corpus of one's own."""

from pathlib import Path
from typing import Annotated, Final

import typer

from train.console import CACHE, CacheOption, DataOption, OutOption, console, progress, told
from train.transfer.adapt import METHODS
from train.transfer.adapt import adapt as adapt_run
from train.transfer.budgets import UNITS, Budget, Unit
from train.transfer.fewshot import SHARES, Plan
from train.transfer.fewshot import fewshot as compare_budgets
from train.transfer.finetune import finetune as finetune_run
from train.transfer.source import Source, read_source
from train.transfer.target import Target, load_target

_BUDGETS: Final = ",".join(f"{share:g}" for share in SHARES)

RunOption = Annotated[Path, typer.Option("--run", help="A finished run to begin with.", exists=True, file_okay=False)]
TargetOption = Annotated[
    Path, typer.Option("--config", help="Target file, see docs/transfer.md.", exists=True, dir_okay=False)
]
RecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", help="Recipe of the run, where its folder does not hold it.", exists=True, dir_okay=False),
]
MembersOption = Annotated[str, typer.Option(help="Members to begin with, joined by commas; all if not given.")]


def finetune(
    run: RunOption,
    config: TargetOption,
    data: DataOption,
    out: OutOption,
    members: MembersOption = "",
    recipe: RecipeOption = None,
    cache: CacheOption = CACHE,
    budget: Annotated[
        float | None, typer.Option(help="Share of the labels to learn from, as fewshot draws it; all if not given.")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help=f"What the budget counts: {' or '.join(UNITS)} (speakers if not given).")
    ] = None,
    draw: Annotated[int | None, typer.Option(help="Number of the draw of the budget (0 if not given).", min=0)] = None,
) -> None:
    """Train the members of a finished run further on a corpus of your own, and join and calibrate them anew.

    Example: medusa-train finetune --run runs/default --config mine.toml --data data --out runs/mine
    """
    if budget is None and (unit is not None or draw is not None):
        raise typer.BadParameter("they are of a budget: give --budget too", param_hint="--unit, --draw")
    counted = _unit(unit or UNITS[0])
    with progress() as (report, _), told():
        source, target = _read(run, config, members, recipe)
        spent = None if budget is None else Budget(budget, draw or 0, counted, target.transfer.validation)
        page = finetune_run(source, target, data, cache, out, report, spent)
    _tell("checkpoint and report", out, page)


def fewshot(
    run: RunOption,
    config: TargetOption,
    data: DataOption,
    out: OutOption,
    members: MembersOption = "",
    recipe: RecipeOption = None,
    cache: CacheOption = CACHE,
    budgets: Annotated[
        str, typer.Option(help="Shares of the labels, rising, joined by commas; the last is full training.")
    ] = _BUDGETS,
    draws: Annotated[int, typer.Option(help="How often each budget is drawn.", min=1)] = 3,
    unit: Annotated[str, typer.Option(help=f"What a budget counts: {' or '.join(UNITS)}.")] = UNITS[0],
    turns: Annotated[
        bool,
        typer.Option("--turns", help="Test on every fold or session of the target in its turn, and put them together."),
    ] = False,
) -> None:
    """Show what few labels of a corpus of your own are worth: a curve over budgets, fine-tuned and from scratch.

    Example: medusa-train fewshot --run runs/default --config mine.toml --data data --out runs/mine-fewshot
    """
    plan = Plan(_shares(budgets), draws, _unit(unit), turns)
    with progress() as (report, _), told():
        source, target = _read(run, config, members, recipe)
        page = compare_budgets(source, target, plan, data, cache, out, report)
    _tell("curve", out, page)


def adapt(
    run: RunOption,
    config: TargetOption,
    data: DataOption,
    out: OutOption,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")],
    members: MembersOption = "",
    recipe: RecipeOption = None,
    cache: CacheOption = CACHE,
) -> None:
    """Adapt a finished run to audio of your own that nobody has labelled.

    Example: medusa-train adapt --method normalise --run runs/default --config mine.toml --data data --out runs/mine
    """
    with progress() as (report, _), told():
        source, target = _read(run, config, members, recipe)
        page = adapt_run(source, target, method, data, cache, out, report)
    _tell("checkpoint and report", out, page)


def _read(run: Path, config: Path, members: str, recipe: Path | None) -> tuple[Source, Target]:
    source = read_source(run, tuple(name.strip() for name in members.split(",") if name.strip()), recipe)
    return source, load_target(config, source.recipe)


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"budgets are written 0.1,0.5,1, got {text!r}", param_hint="--budgets") from error
    if list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] <= 1:
        raise typer.BadParameter(f"budgets rise, above 0 and up to 1, got {text!r}", param_hint="--budgets")
    return shares


def _unit(text: str) -> Unit:
    for unit in UNITS:
        if unit == text:
            return unit
    raise typer.BadParameter(f"one of {', '.join(UNITS)}, got {text!r}", param_hint="--unit")


def _tell(what: str, out: Path, page: Path) -> None:
    console.print(f"{what}: {out} ({page})", markup=False, highlight=False, soft_wrap=True)
