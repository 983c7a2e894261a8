"""The training modules of both models: what labels reach, and what each flaw of the original does."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from nuclass.core.protocol import Protocol
from nuclass.data.augment import Augment, augment_images, to_unit
from nuclass.models.backbones import build_backbone
from nuclass.models.global_ import GlobalModel
from nuclass.models.local import LocalModel, Output
from nuclass.models.losses import effective_number_weights
from nuclass.training.config import Global, GuidedLoss, Local, Loss, Optimizer
from nuclass.training.modules import GlobalModule, LocalModule, augmentation

BACKBONE = {"name": "timm:test_resnet", "input_px": 32, "pool": "center"}
CELLS, CLASSES, WIDTH = 8, 4, 12
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 0.5])
CORRECTED = Protocol()


def local_module(protocol: Protocol = CORRECTED, **options) -> LocalModule:
    torch.manual_seed(1)
    model = LocalModel(build_backbone(BACKBONE), 3, CLASSES, organ_dim=4, hidden=16, organ_dropout=0.2)
    return LocalModule(model, Local(**options), WEIGHTS, 1, protocol)


def global_module(protocol: Protocol = CORRECTED, **options) -> GlobalModule:
    local = local_module().model.eval()
    torch.manual_seed(2)
    model = GlobalModel(build_backbone(BACKBONE), WIDTH, CLASSES, project=6, hidden=16, gate_hidden=8)
    model.backbone.load_state_dict(local.backbone.state_dict())
    return GlobalModule(model, Global(**options), WEIGHTS, 1, protocol, local)


def batch_of(seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (CELLS, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "organ": torch.arange(CELLS) % 3,
        "label": torch.arange(CELLS) % CLASSES,
        "context": torch.randn(CELLS, 3, WIDTH, generator=generator),
        "teacher": 2 * torch.randn(CELLS, CLASSES, generator=generator),
    }


def loss_of(module, batch, seed: int = 5) -> torch.Tensor:
    torch.manual_seed(seed)
    return module.loss(batch, to_unit(batch["image"]), torch.Generator().manual_seed(seed))


def seen(module, batch, monkeypatch) -> list[torch.Tensor]:
    """Return all that the networks give while the loss of a batch is computed."""
    outputs: list[torch.Tensor] = []
    for name in ("classify", "fuse"):
        if hasattr(module.model, name):
            real = getattr(module.model, name)

            def spy(*args, _real=real, **kwargs):
                result = _real(*args, **kwargs)
                outputs.extend(result if isinstance(result, Output) else [result])
                return result

            monkeypatch.setattr(module.model, name, spy)
    loss_of(module, batch)
    monkeypatch.undo()
    return outputs


def relabelled(batch):
    return {**batch, "label": batch["label"].roll(1)}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("make", [local_module, global_module])
def test_no_network_knows_the_labels(make, train, monkeypatch):
    module = make().train(train)
    start = copy.deepcopy(module.state_dict())
    first = seen(module, batch_of(), monkeypatch)
    module.load_state_dict(start)
    second = seen(module, relabelled(batch_of()), monkeypatch)
    assert len(first) == len(second) == (2 if make is local_module else 3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    batch = batch_of()
    assert torch.equal(module.eval().logits(batch, to_unit(batch["image"])),
                       module.logits(relabelled(batch), to_unit(batch["image"])))  # fmt: skip


@pytest.mark.parametrize("make", [local_module, global_module])
def test_the_labels_do_change_the_loss(make):
    module = make().eval()
    assert not torch.allclose(loss_of(module, batch_of()), loss_of(module, relabelled(batch_of())))


def test_the_loss_without_flaws_is_the_corrected_one_bit_by_bit():
    module, batch = global_module(), batch_of()
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(5)
    view = torch.randint(0, 3, (CELLS,), generator=generator)
    z_a, y = batch["teacher"], batch["label"]
    out = module.model(to_unit(batch["image"]), batch["context"][torch.arange(CELLS), view])
    fused = module.model.fuse(out, z_a)
    weight = (1 - z_a.softmax(1)[torch.arange(CELLS), y]) ** 2
    first = (weight * F.cross_entropy(fused, y, reduction="none", label_smoothing=0.05)).mean()
    expected = first + 0.3 * F.cross_entropy(out.logits, y, weight=WEIGHTS, label_smoothing=0.05)
    again = global_module()
    assert torch.equal(loss_of(again, batch), expected)
    assert again.teacher is None


def test_the_local_loss_is_that_of_its_settings():
    module, batch = local_module(loss=Loss(label_smoothing=0.3)).eval(), batch_of()
    logits = module.model(to_unit(batch["image"]), batch["organ"]).logits
    expected = F.cross_entropy(logits, batch["label"], weight=WEIGHTS, label_smoothing=0.3)
    assert torch.equal(loss_of(module, batch), expected)


def test_the_global_loss_is_that_of_its_settings():
    terms = GuidedLoss(label_smoothing=0.3, gamma=3.0, own_weight=0.7, fused_weight=1.6)
    module, batch = global_module(Protocol(no_global_augmentation=True), loss=terms).eval(), batch_of()
    z_a, y = batch["teacher"], batch["label"]
    out = module.model(to_unit(batch["image"]), batch["context"][:, 0])
    weight = (1 - z_a.softmax(1)[torch.arange(CELLS), y]) ** 3.0
    fused = F.cross_entropy(module.model.fuse(out, z_a), y, reduction="none", label_smoothing=0.3)
    own = F.cross_entropy(out.logits, y, weight=WEIGHTS, label_smoothing=0.3)
    assert torch.isclose(loss_of(module, batch), 1.6 * (weight * fused).mean() + 0.7 * own, rtol=1e-6)


def test_doubt_by_entropy_needs_no_label_for_the_weight(monkeypatch):
    from nuclass.training import modules

    weights = []
    real = modules.guided_loss
    monkeypatch.setattr(modules, "guided_loss", lambda *a, **k: weights.append(a[3]) or real(*a, **k))
    for labels in (batch_of(), relabelled(batch_of())):
        loss_of(global_module(loss=GuidedLoss(doubt="entropy", gamma=1.0)), labels)
    p = batch_of()["teacher"].softmax(1)
    assert torch.equal(weights[0], weights[1])
    assert torch.allclose(weights[0], -(p * p.log()).sum(1) / torch.tensor(4.0).log())


def gradients(module: GlobalModule, batch) -> float:
    """Return the largest gradient of the copy of the local model's heads."""
    module.zero_grad()
    loss_of(module, batch).backward()
    assert module.teacher is not None
    return max((float(p.grad.abs().max()) for p in module.teacher.parameters() if p.grad is not None), default=0.0)


def weight_alone(protocol: Protocol) -> GlobalModule:
    """A module whose loss depends on the copy through the weight only: fused logits of the frozen teacher."""
    module = global_module(protocol)
    module.model.fuse = lambda output, local, hint=None: output.logits  # type: ignore[method-assign]
    return module


def test_the_undetached_weight_pulls_at_the_local_copy():
    cut = weight_alone(Protocol(moving_teacher=True))
    assert gradients(cut, batch_of()) == 0
    assert gradients(weight_alone(Protocol(moving_teacher=True, undetached_weight=True)), batch_of()) > 1e-6


def test_the_undetached_weight_reaches_the_backbone_through_heads_that_rest():
    module, plain = global_module(Protocol(undetached_weight=True)), global_module()
    assert not any(part.training for part in module.teacher.modules())
    assert all(part.training for part in global_module(Protocol(moving_teacher=True)).teacher.modules())
    for one in (module, plain):
        loss_of(one, batch_of()).backward()
    assert module.teacher is not None
    assert all(p.grad is None for p in module.teacher.parameters())
    assert not any(part.training for part in module.train().teacher.modules())
    pairs = zip(module.model.backbone.parameters(), plain.model.backbone.parameters(), strict=True)
    assert any(not torch.allclose(a.grad, b.grad) for a, b in pairs)


def opinions(module: GlobalModule, batch) -> torch.Tensor:
    assert module.teacher is not None
    mode = module.training
    module.eval()
    with torch.no_grad():
        features = module.model.backbone(to_unit(batch["image"]))
        p = module.teacher.classify(features, batch["organ"]).logits.softmax(1)
    module.train(mode)
    return p


def steps(module, batch, n: int = 3) -> None:
    optimizer = torch.optim.AdamW(module.parameter_groups())
    for _ in range(n):
        optimizer.zero_grad()
        loss_of(module, batch).backward()
        optimizer.step()


def test_a_moving_teacher_trains_at_the_heads_rate():
    batch = batch_of()
    module = global_module(Protocol(moving_teacher=True), optimizer=Optimizer(lr_head=7e-3, lr_backbone=0.0))
    rates = {id(p): group["lr"] for group in module.parameter_groups() for p in group["params"]}
    assert {rates[id(p)] for p in module.teacher.parameters()} == {7e-3}
    before, start = copy.deepcopy(module.teacher.state_dict()), opinions(module, batch)
    steps(module.train(), batch)
    after = module.teacher.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in ("norm.weight", "head.1.weight", "head.4.bias"))
    assert (opinions(module, batch) - start).abs().max() > 1e-3
    assert not any(name.startswith("teacher") for name in module.model.state_dict())


def test_a_teacher_at_rest_never_moves():
    batch = batch_of()
    module = global_module(Protocol(undetached_weight=True), optimizer=Optimizer(lr_head=7e-3))
    held = {id(p) for group in module.parameter_groups() for p in group["params"]}
    assert not held & {id(p) for p in module.teacher.parameters()}
    before = copy.deepcopy(module.teacher.state_dict())
    steps(module.train(), batch)
    assert all(torch.equal(value, before[name]) for name, value in module.teacher.state_dict().items())


def test_the_released_fused_loss_by_hand():
    """z_A + g z_B with the copy's z_A, weight and hint of that same copy, all in eval mode."""
    protocol = Protocol(moving_teacher=True, undetached_weight=True, label_in_gate=True, no_global_augmentation=True)
    module, batch = global_module(protocol).eval(), batch_of()
    y, rows = batch["label"], torch.arange(CELLS)
    features = module.model.backbone(to_unit(batch["image"]))
    z_a = module.teacher.classify(features, batch["organ"]).logits
    out = module.model.classify(features, batch["context"][:, 0])
    q = z_a.softmax(1)[rows, y]
    for hint, training in ((torch.zeros(CELLS), False), (q, True)):
        g = torch.sigmoid(module.model.inner_gate(torch.cat([out.features, hint[:, None]], 1)))
        fused = F.cross_entropy(z_a + g * out.logits, y, reduction="none", label_smoothing=0.05)
        own = F.cross_entropy(out.logits, y, weight=WEIGHTS, label_smoothing=0.05)
        expected = ((1 - q) ** 2 * fused).mean() + 0.3 * own
        module.training = training  # the network itself stays without dropout
        assert torch.isclose(loss_of(module, batch), expected, rtol=1e-6)


def test_the_label_reaches_the_inner_gate_in_training_alone(monkeypatch):
    for train in (True, False):
        found = []
        for batch in (batch_of(), relabelled(batch_of())):
            module = global_module(Protocol(label_in_gate=True)).train(train)
            found.append(seen(module, batch, monkeypatch))
        assert all(torch.equal(a, b) for a, b in zip(found[0][:2], found[1][:2], strict=True))
        assert torch.equal(found[0][2], found[1][2]) != train


def test_a_copy_needs_a_local_model():
    module = global_module()
    for flaw in ("moving_teacher", "undetached_weight"):
        with pytest.raises(ValueError, match="local model"):
            GlobalModule(module.model, Global(), WEIGHTS, 1, Protocol(**{flaw: True}))


def test_one_coin_for_the_context_of_a_batch():
    module = global_module(Protocol(batch_context_dropout=True)).train()
    assert module.model.one_draw_a_batch
    assert not global_module().model.one_draw_a_batch


def test_the_global_model_may_train_on_windows_as_they_are():
    strong = Augment(dihedral=True, rotate=20, shift=0.1, hue=0.2, noise=0.1)
    module = global_module(Protocol(no_global_augmentation=True), augment=strong)
    batch = batch_of()
    images = augment_images(batch["image"], module.augment_settings, torch.Generator().manual_seed(0))
    assert torch.allclose(images, to_unit(batch["image"]))
    plain = {**batch, "context": batch["context"][:, :1]}
    # nor is a changed view of the context drawn
    assert torch.equal(loss_of(module, batch), loss_of(global_module(Protocol(no_global_augmentation=True)), plain))
    assert global_module(augment=strong).augment_settings == strong
    assert local_module(Protocol(no_global_augmentation=True), augment=strong).augment_settings == strong


def test_black_corners_leave_the_stain_of_the_context_as_it_is():
    batch = batch_of()
    plain = {**batch, "context": batch["context"][:, :1]}
    flawed = Protocol(black_corners=True)
    assert torch.equal(loss_of(global_module(flawed), batch), loss_of(global_module(flawed), plain))
    assert not torch.equal(loss_of(global_module(), batch), loss_of(global_module(), plain))


def test_black_corners_are_passed_on_to_both():
    strong = Augment(rotate=15)
    for make in (local_module, global_module):
        assert make(Protocol(black_corners=True), augment=strong).augment_settings == dataclasses.replace(
            strong, black_corners=True
        )
        assert make(augment=strong).augment_settings == strong
    none = augmentation(strong, Protocol(black_corners=True), none=True)
    assert none == Augment(**{field.name: 0 for field in dataclasses.fields(Augment)})


@pytest.mark.parametrize("make", [local_module, global_module])
def test_the_originals_decay_shrinks_biases_too(make):
    rates = Optimizer(lr_head=0.1, lr_backbone=0.1, weight_decay=0.5)
    for everywhere in (False, True):
        module = make(Protocol(decay_everywhere=everywhere, moving_teacher=True), optimizer=rates)
        optimizer = torch.optim.AdamW(module.parameter_groups())
        with torch.no_grad():
            module.model.head[4].bias.fill_(1.0)
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert module.model.head[4].bias.tolist() == pytest.approx([0.95 if everywhere else 1.0] * CLASSES)
        if make is global_module:
            decays = {group["weight_decay"] for group in module.parameter_groups()}
            assert decays == ({0.5} if everywhere else {0.0, 0.5})


def test_an_empty_class_flattens_the_gradients_of_the_others():
    """Under the original's weights the class term of the cells there are all but vanishes, next to the guided one."""
    counts = torch.tensor([300, 50, 20, 0])
    pulls = {}
    for guard in (True, False):
        module = global_module(loss=GuidedLoss(fused_weight=0.0))
        module.class_weights = effective_number_weights(counts, guard=guard)
        batch = {**batch_of(), "label": torch.arange(CELLS) % 3}
        logits = torch.zeros(CELLS, CLASSES, requires_grad=True)
        module.model.classify = lambda *_, z=logits: Output(torch.zeros(CELLS, 12), z)  # type: ignore[method-assign]
        loss_of(module, batch).backward()
        pulls[guard] = logits.grad
    # torch divides by the weights of the labels, so the smoothed share of the empty class takes over
    assert pulls[True][:, 3].abs().max() < 1
    assert pulls[False][:, 3].abs().max() > 100
    assert pulls[False][:, :3].abs().max() > 10 * pulls[True][:, :3].abs().max()
