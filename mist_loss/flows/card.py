"""The model card of adapted weights."""


def card(origin: dict) -> str:
    """A model card, Markdown, from the provenance of adapted weights."""
    flows = "\n".join(
        f"| {name} | {f['rows']} x {f['dims']} | {f['width']} | {f['explained']:.1%} | {f['log_likelihood']:.2f} "
        f"| {f['gaussian']:.2f} | {f['auc']:.2f} | {f['auc_gaussian']:.2f} |"
        for name, f in origin["flows"].items()
    )
    before, after = (origin["held_out_problems"][key] for key in ("before", "after"))
    tune = origin["finetune"]
    return f"""# Adapted weights

An estimator of mutual information, in nats, fine-tuned on problems whose sides look like some rows of a modality.

- Parent: sha256 `{origin["parent"]}`.
- Training: {tune["steps"]} steps of {tune["groups"]} groups, a share of {origin["replay"]:g} replayed from the
  mixture `{origin["mixture"]}`, the others pushed through the flows below; {origin["rows"][0]} to
  {origin["rows"][1]} rows; seed {tune["seed"]}; commit {origin["commit"]}, torch {origin["torch"]}.
- Data: no row is in this file. It holds the flows, with means and principal directions, which draw rows that look like
  those of the modality; its header holds the shapes of the rows and how the flows fit.

| side | rows x features | width | variance held | log-likelihood | of a Gaussian | AUC | of a Gaussian |
| --- | --- | --- | --- | --- | --- | --- | --- |
{flows}

Log-likelihood: nats a row, held-out, whitened. AUC: of a classifier between held-out rows and rows of the flow (0.5:
alike).

On held-out pushed problems:

| | mean absolute error (nats) | coverage of the 90% interval |
| --- | --- | --- |
| parent | {before["error"]:.3f} | {before["coverage"]:.0%} |
| adapted | {after["error"]:.3f} | {after["coverage"]:.0%} |

Intended use: rows of the same kind, in the same coordinates; where the width is smaller than the number of features, in
their principal coordinates, to which sides of more than 64 features are led. Sides as wide as their flow, or several
such next to each other, are read twice if they look like those rows (scale and place included) and there are more rows
than features; others are read by the parent, as it was (of an adapted parent, by what that one keeps). What the
problems cannot show: dependence of a kind that none of them has.
"""
