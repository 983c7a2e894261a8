"""The three stages as boxes and arrows: local model, global model and gate, as the code has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nuclass.figures.pipeline_views import Views
from nuclass.figures.schematic import SOFT, Box, Canvas
from nuclass.figures.style import BRANCH_COLOURS

_LEFT, _PIC = 1.0, 27.0
_LOCAL, _GLOBAL, _GATE = (BRANCH_COLOURS[name] for name in ("local", "global", "fused"))


@dataclass(frozen=True)
class Method:
    """What the models of a study are made of.

    Attributes
    ----------
    windows
        Sides of the ``local`` and the ``global`` window, px.
    mpp
        um a px of the slide.
    local_network, context_network
        Names of the networks.
    local_px, context_px
        Sides of what they see.
    organ
        How the organ is used: ``film``, ``concat`` or ``none``.
    project, gate_project, gate_hidden
        Widths: of the global model's projections, of the gate's (0: none) and of its hidden layers.
    gamma, doubt
        Power of the guided loss's weight, and what it is made of: ``label`` or ``entropy``.
    joint
        Whether both models' heads are fine-tuned with the gate.
    pretrained
        Whether the study trains the context network itself, on the labels around training cells.
    """

    windows: Mapping[str, int]
    mpp: float
    local_network: str
    context_network: str
    local_px: int
    context_px: int
    organ: str
    project: int
    gate_project: int
    gate_hidden: Sequence[int]
    gamma: float
    doubt: str
    joint: bool
    pretrained: bool

    @classmethod
    def of(cls, sections: Mapping[str, Any], windows: Mapping[str, int], mpp: float) -> Method:
        """Return what the sections ``local context global gate`` of the file of models say."""
        local, context = sections["local"]["backbone"], sections["context"]["backbone"]
        model, loss, gate = sections["global"]["model"], sections["global"]["loss"], sections["gate"]["model"]
        return cls(
            windows=dict(windows),
            mpp=mpp,
            local_network=str(local["name"]).removeprefix("timm:"),
            context_network=str(context["name"]).removeprefix("timm:"),
            local_px=int(local.get("input_px", windows["local"])),
            context_px=int(context.get("input_px", windows["global"])),
            organ=str(sections["local"]["model"]["organ"]),
            project=int(model["project"]),
            gate_project=int(gate["project"]),
            gate_hidden=[int(width) for width in gate["hidden"]],
            gamma=float(loss["gamma"]),
            doubt=str(loss["doubt"]),
            joint=int(sections["gate"]["joint"]["max_epochs"]) > 0,
            pretrained=bool(sections["context"].get("pretrain")),
        )


def draw_method(canvas: Canvas, views: Views, method: Method, top: float) -> None:
    """Draw the windows of one cell and the three stages, from ``top`` (mm) downwards, 82 mm high."""
    canvas.text((_LEFT, top), "b", fontsize=9, weight="bold", va="center")
    heading = "One cell through the three stages; each is trained after the one before"
    canvas.text((_LEFT + 4, top), heading, fontsize=7, weight="bold", va="center")
    for box, colour, title in (
        (Box(31.5, top + 4, 86, 24.5), _LOCAL, "Stage 1 · local model"),
        (Box(31.5, top + 31, 86, 47), _GLOBAL, "Stage 2 · global model"),
        (Box(121, top + 4, 61, 74), _GATE, "Stage 3 · gate"),
    ):
        canvas.band(box, colour)
        canvas.text((box.x + 2, box.y + 3), title, fontsize=6, weight="bold", va="center", color=colour)
    local, around = _windows(canvas, views, method, top)
    y1, y2 = top + 20, top + 56
    probable, features = _stage_one(canvas, views.organ, method, local, y1)
    answer, context = _stage_two(canvas, method, local, around, y2)
    _guidance(canvas, method, probable, top)
    _stage_three(canvas, method, (probable, answer), (features, context))


def _windows(canvas: Canvas, views: Views, method: Method, top: float) -> tuple[Box, Box]:
    """Draw both windows; the square in the global one is the local one."""
    boxes = {"local": Box(_LEFT, top + 10, _PIC, _PIC), "global": Box(_LEFT, top + 48, _PIC, _PIC)}
    for name, box in boxes.items():
        side = method.windows[name]
        text = f"{side} px, {side * method.mpp:g} µm"
        canvas.text((box.x, box.y - 1.2), f"{name.capitalize()} window", fontsize=6, weight="bold")
        canvas.text((box.x, box.y + box.height + 1.2), text, fontsize=5, va="top", color=SOFT)
        if name not in views.windows:
            canvas.placeholder(
                box, "Windows of patch files\nare not shown" if views.shape is None else "No labelled cell\nto show"
            )
            continue
        ax = canvas.picture(box)
        ax.imshow(views.windows[name], extent=(0, side, side, 0), interpolation="antialiased")
        ax.spines[:].set(color=_LOCAL if name == "local" else _GLOBAL, linewidth=1.0)
        if name == "global":
            low, high = (side - method.windows["local"]) / 2, (side + method.windows["local"]) / 2
            ax.plot([low, high, high, low, low], [low, low, high, high, low], color=_LOCAL, lw=1.0)
    return boxes["local"], boxes["global"]


def _stage_one(canvas: Canvas, organ: str, method: Method, window: Box, y: float) -> tuple[Box, tuple[float, float]]:
    """Draw the local model on the height ``y``; return its answer, and where its features leave for the gate."""
    network = _row(35.5, 20, y)
    _network(canvas, network, method.local_network, f"sees {method.local_px} px", _LOCAL)
    organ_box = _row(61, 22, y)
    ways = {
        "film": ("LayerNorm, FiLM", r"$(1+\gamma)\cdot f+\beta$"),
        "concat": ("LayerNorm", "organ's vector behind"),
        "none": ("LayerNorm", ""),
    }
    canvas.box(organ_box, "\n".join(filter(None, ways[method.organ])), colour=_LOCAL)
    head, answer = _row(90, 10, y), _row(106, 8, y, 8)
    canvas.box(head, "Head", colour=_LOCAL)
    canvas.box(answer, r"$p_A$", colour=_LOCAL, fill=_LOCAL, fontsize=7, color="white")
    canvas.arrow([(window.x + window.width, y), network.left])
    for first, second in ((network, organ_box), (organ_box, head), (head, answer)):
        canvas.arrow([first.right, second.left])
    if method.organ != "none":
        chip = Box(organ_box.x + 2, y - 14.4, 18, 5)
        canvas.box(chip, f"organ: {organ}", colour=_LOCAL)
        canvas.arrow([chip.bottom, organ_box.top])
    return answer, (organ_box.right[0] + 3, y)


def _stage_two(canvas: Canvas, method: Method, local: Box, around: Box, y: float) -> tuple[Box, tuple[float, float]]:
    """Draw the global model around the height ``y``; return its answer, and where its features leave for the gate."""
    above, below = y - 12, y + 12
    own, frozen = _row(35.5, 20, above), _row(35.5, 20, below)
    _network(canvas, own, method.local_network, "starts from stage 1", _GLOBAL)
    note = f"frozen, sees {method.context_px} px"
    note = f"{note};\nfirst learns from\nlabels around cells" if method.pretrained else note
    _network(canvas, frozen, method.context_network, note, _GLOBAL)
    text = f"LayerNorm,\nlinear to {method.project}"
    u, c = _row(61, 14, above), _row(61, 14, below)
    for box in (u, c):
        canvas.box(box, text, colour=_GLOBAL)
    joined = Box(79.5, y - 5.5, 7, 11)
    canvas.box(joined, "$u$\n$\\alpha c$", colour=_GLOBAL, fontsize=6)
    head, answer = _row(92.5, 9, y), _row(106, 8, y, 8)
    canvas.box(head, "Head", colour=_GLOBAL)
    canvas.box(answer, r"$p_B$", colour=_GLOBAL, fill=_GLOBAL, fontsize=7, color="white")
    turn = local.x + local.width + 1.6
    canvas.arrow([(local.x + local.width, local.y + local.height - 4), (turn, local.y + local.height - 4),
                  (turn, above), own.left])  # fmt: skip
    canvas.arrow([(around.x + around.width, below), frozen.left])
    canvas.arrow([own.right, u.left])
    canvas.arrow([frozen.right, c.left])
    canvas.arrow([u.right, (joined.top[0], above), joined.top])
    canvas.arrow([c.right, (joined.bottom[0], below), joined.bottom])
    canvas.arrow([joined.right, head.left])
    canvas.arrow([head.right, answer.left])
    meaning = "$u$: of the cell, $c$: of its surroundings;\n$\\alpha$ rises to 1 in the first epochs"
    canvas.text((79, below + 6.6), meaning, fontsize=5, color=SOFT, va="center")
    return answer, (joined.right[0] + 2.4, y)


def _guidance(canvas: Canvas, method: Method, probable: Box, top: float) -> None:
    """Draw how the local model's answer guides the training of the global one."""
    doubt = r"(1-p_A(y))" if method.doubt == "label" else r"H(p_A)"
    box = Box(88, top + 33, 28, 8)
    text = f"in training, a cell's guided\nloss weighs ${doubt}^{{{method.gamma:g}}}$"
    canvas.box(box, text, colour=_LOCAL, fontsize=5)
    canvas.arrow([probable.bottom, (probable.bottom[0], box.y)], colour=_LOCAL, dashed=True)


def _stage_three(
    canvas: Canvas, method: Method, answers: tuple[Box, Box], features: tuple[tuple[float, float], ...]
) -> None:
    """Draw the gate: what it sees, its weight g, and the mixture of both answers."""
    (y1, y2), middle = (box.right[1] for box in answers), (answers[0].right[1] + answers[1].right[1]) / 2
    sees = Box(127, middle - 9.5, 21, 19)
    parts = ["8 statistics of", r"$p_A$ and $p_B$: maxima,", "entropies, margins,", r"$d$ and $|d|$"]
    if method.gate_project:
        parts += [f"$f_A$, $f_B$: to {method.gate_project} each"]
    canvas.box(sees, "\n".join(parts), colour=_GATE, fontsize=5)
    layers = Box(152.5, middle - 6, 9, 12)
    hidden = ", ".join(str(size) for size in method.gate_hidden)
    canvas.box(layers, "\n".join(filter(None, ["MLP", hidden, "sigmoid"])), colour=_GATE, fontsize=5)
    mixed = Box(167, y1 - 5, 13, y2 - y1 + 10)
    canvas.box(mixed, "$(1-g)\\,p_A$\n+\n$g\\,p_B$", colour=_GATE)
    for box, y in zip(answers, (y1, y2), strict=True):
        canvas.arrow([box.right, (mixed.x, y)])
        canvas.joint((sees.top[0], y))
    canvas.arrow([(sees.top[0], y1), sees.top])
    canvas.arrow([(sees.bottom[0], y2), sees.bottom])
    canvas.arrow([sees.right, layers.left])
    canvas.arrow([layers.right, (mixed.x, middle)])
    canvas.text((layers.right[0] + 2.7, middle - 1), "$g$", fontsize=6, ha="center", va="bottom")
    if method.gate_project:
        _features(canvas, sees, features, middle)
    out = Box(152.5, y2 + 11.5, 27.5, 8)
    canvas.box(out, "class of the cell and its\ncalibrated probability", colour=_GATE)
    canvas.arrow([(mixed.x + mixed.width / 2, mixed.y + mixed.height), (mixed.x + mixed.width / 2, out.y)])
    note = "then tuned with both heads" if method.joint else "both models stay as they are"
    note = f"fitted on validation cells;\n{note}"
    canvas.text((123, out.y + 4), note, fontsize=5, color=SOFT, va="center")


def _features(canvas: Canvas, sees: Box, starts: Sequence[tuple[float, float]], middle: float) -> None:
    """Draw the lanes of both models' features, from before their heads to the gate."""
    for (x, y), lane, name in zip(starts, (middle - 7.0, middle + 7.0), "AB", strict=True):
        canvas.joint((x, y))
        canvas.arrow([(x, y), (x, lane), (sees.x, lane)])
        canvas.text((sees.x - 3.6, lane - 0.7), f"$f_{name}$", fontsize=6, ha="center", va="bottom")


def _network(canvas: Canvas, box: Box, name: str, note: str, colour: str) -> None:
    canvas.box(box, "", colour=colour)
    x, y = box.x + box.width / 2, box.y + box.height / 2
    up, down, size = (3.6, 1.5, 4.5) if "\n" in note else (1.9, 1.9, 5.0)
    canvas.text((x, y - up), name, ha="center", va="center", fontsize=5.5 if len(name) <= 14 else 5)
    canvas.text((x, y + down), note, ha="center", va="center", fontsize=size, color=SOFT, linespacing=1.1)


def _row(x: float, width: float, y: float, height: float = 11.0) -> Box:
    return Box(x, y - height / 2, width, height)
