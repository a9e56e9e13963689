"""What a run has cost, as a part of the report's page."""

from html import escape

from train import plots
from train.cost import EVALUATION, FEATURES, META, STAGE_1, STAGE_2, Seconds

_NAMES = {FEATURES: "features", STAGE_1: "stage 1", STAGE_2: "stage 2", META: "stages 3, 4", EVALUATION: "evaluation"}


def cost_section(cost: Seconds) -> str:
    """Seconds per stage as bars, and per member as a table."""
    if not cost:
        return "<p>This run noted no seconds.</p>"
    totals = {_NAMES.get(stage, stage): sum(jobs.values()) for stage, jobs in cost.items()}
    per_member: dict[str, dict[str, float]] = {}
    for stage in (STAGE_1, STAGE_2):
        for job, seconds in cost.get(stage, {}).items():
            row = per_member.setdefault(job.split("-without-fold-")[0], {})
            row[stage] = row.get(stage, 0.0) + seconds
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{row.get(STAGE_1, 0.0):,.1f}</td>'
        f"<td>{row.get(STAGE_2, 0.0):,.1f}</td></tr>"
        for name, row in per_member.items()
    )
    members = (
        '<figure class="panel"><figcaption>Seconds per member<small>The member itself and its folds together.</small>'
        '</figcaption><table class="small compact"><thead><tr><th scope="col">member</th><th scope="col">stage 1</th>'
        f'<th scope="col">stage 2</th></tr></thead><tbody>{rows}</tbody></table></figure>'
        if rows
        else ""
    )
    return (
        '<div class="panels"><figure class="panel"><figcaption>Seconds per stage<small>Wall clock, all runs of this folder '
        "added up; members train side by side, so less time passed. What was cached cost nothing.</small></figcaption>"
        f"{plots.bars(totals, 'seconds per stage')}</figure>{members}</div>"
    )
