"""finetune as a whole: it learns, from the teacher alone, and leaves its inputs as they were."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from vitcompact.errors import UsageError
from vitcompact.layers.branches import TokenBatchNorm
from vitcompact.training import DivergedError, TensorBatches, TrainOptions, branch_ratios, finetune
from vitcompact.training.distill import Distiller, block_loss, block_names, logit_loss
from vitcompact.training.held_out import HeldOut, batches_judged, unseen_crops
from vitcompact.utils.copies import copy_of
from vitcompact.utils.hooks import recorded_outputs
from vitcompact.utils.progress import silent

from .helpers import SIZE, make_student, make_teacher, options, same_weights


def distance(model: nn.Module, teacher: nn.Module, images: Tensor) -> float:
    with torch.inference_mode():
        return float((model(images) - teacher(images)).square().mean())


def block_distance(model: nn.Module, teacher: nn.Module, images: Tensor) -> float:
    """What is learned by default: the mean relative error of the blocks' outputs."""
    names = block_names(teacher)
    outputs: list[list[Tensor]] = []
    for each in (model, teacher):
        with torch.no_grad(), recorded_outputs(each, names) as found:
            each(images)
        outputs.append([found[name] for name in names])
    return float(block_loss(outputs[0], outputs[1]))


def test_the_student_moves_towards_the_teacher_and_inputs_stay_untouched(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor
) -> None:
    before_student, before_teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    teacher.train()
    result = finetune(student, teacher, images, options=options(steps=25, lr=1e-3, logit_weight=1.0))
    assert distance(result.model, before_teacher, images) < 0.5 * distance(student, before_teacher, images)
    assert same_weights(student, before_student)
    assert same_weights(teacher, before_teacher)
    assert teacher.training
    assert not student.training
    assert not result.model.training
    hooked = [
        m for model in (result.model, teacher) for m in model.modules() if m._forward_hooks or m._forward_pre_hooks
    ]
    assert not hooked


def test_blocks_move_towards_those_of_the_teacher(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor
) -> None:
    result = finetune(student, teacher, images, options=options(steps=25, lr=1e-3))
    assert block_distance(result.model, teacher, images) < 0.5 * block_distance(student, teacher, images)


def test_logits_are_matched_where_no_blocks_are(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor
) -> None:
    """By default block outputs alone; without any the default must not be to learn nothing."""
    with torch.no_grad():
        wanted = logit_loss(student(images), teacher(images), options().temperature)
    unknown = Distiller(student, teacher, (), options(), None)
    none = torch.full((len(images),), -1)
    torch.testing.assert_close(unknown.loss(images, none).detach(), wanted)
    student.head.weight.data.zero_()  # plays no part in block outputs
    known = Distiller(student, teacher, block_names(teacher), options(), None)
    with torch.no_grad():
        moved = known.loss(images, none)
        student.head.weight.data.add_(1.0)
        torch.testing.assert_close(known.loss(images, none), moved)


def test_a_model_without_a_head_needs_features_or_blocks() -> None:
    teacher = make_teacher(num_classes=0)
    chosen = options(feature_weight=0.0, block_weight=0.0)
    with pytest.raises(UsageError, match="nothing to learn from"):
        Distiller(make_student(teacher), teacher, block_names(teacher), chosen, None)


def test_only_surgery_tells_the_student_from_the_original(images: Tensor) -> None:
    """No stochastic depth, no statistics of batches: an unconverted student has no loss, and stays as it is."""
    sizes = {"init_channels": 8, "embed_dim": 48, "num_heads": 3, "depth": 3, "drop_path_rate": 0.5}
    teacher = timm.create_model("visformer_tiny", num_classes=5, img_size=32, **sizes).train()
    teacher(images)
    losses: list[float] = []
    step = Distiller.loss

    def spy(self: Distiller, *args: Any) -> Tensor:
        losses.append(float(step(self, *args).detach()))
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distiller, "loss", spy)
        result = finetune(teacher, teacher, images, options=options(steps=2, amp=False))
    assert losses[0] < 1e-9
    before, after = teacher.state_dict(), result.model.state_dict()
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)


def test_branches_start_silent_and_learn(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor
) -> None:
    plain = make_student(teacher, branches=0)
    with torch.inference_mode():
        torch.testing.assert_close(student(images), plain(images), rtol=1e-5, atol=1e-5)
    assert set(branch_ratios(student).values()) == {0.0}
    result = finetune(student, teacher, images, options=options())
    assert len(result.branch_ratio) == 2 * len(student.blocks)
    assert min(result.branch_ratio.values()) > 1e-4


def test_branch_statistics_belong_to_the_final_weights(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor
) -> None:
    """Evaluation mode gives what the training mode of the branches gives over the same images."""
    result = finetune(student, teacher, TensorBatches(images, batch_size=24), options=options(branch_lr=0.1))
    with torch.inference_mode():
        evaluated = result.model(images)
        for module in result.model.modules():
            if isinstance(module, TokenBatchNorm):
                module.train()
        torch.testing.assert_close(evaluated, result.model(images), rtol=1e-3, atol=1e-3)


def test_labels_are_not_looked_at_unless_asked_for(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor
) -> None:
    garbage = TensorBatches(images, torch.randint(0, 10**6, (24,)), batch_size=8)
    unlabelled = TensorBatches(images, batch_size=8)
    first = finetune(student, teacher, garbage, options=options())
    second = finetune(student, teacher, unlabelled, options=options())
    assert same_weights(first.model, second.model)
    labelled = TensorBatches(images, torch.arange(24) % 5, batch_size=8)
    third = finetune(student, teacher, labelled, options=options(labels=True))
    assert not same_weights(first.model, third.model)
    with pytest.raises(UsageError, match="no labels"):
        finetune(student, teacher, unlabelled, options=options(labels=True))


def test_result_with_and_without_evaluation(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor
) -> None:
    blind = finetune(student, teacher, images, options=options(steps=2)).to_json()
    assert blind["top1"] == {"before": None, "after": None}
    assert blind["agreement"] is None
    with torch.inference_mode():
        labels = teacher(images).argmax(1)
    seen = finetune(student, teacher, images, options=options(epochs=4, steps=None), evaluation=[(images, labels)])
    assert seen.stopped_by == "epochs"
    assert seen.steps == 4
    assert seen.images_seen == 4 * 24
    assert seen.agreement is not None
    assert seen.top1_before is not None
    assert seen.top1_after == pytest.approx(100 * seen.agreement)
    assert 0 <= seen.top1_before <= 100
    json.dumps(seen.to_json())


def test_a_model_without_a_head_learns_features(images: Tensor) -> None:
    teacher = make_teacher(num_classes=0)
    student = make_student(teacher)
    evaluation = [(images, torch.full((24,), -1))]
    result = finetune(student, teacher, images, options=options(steps=25, lr=1e-3), evaluation=evaluation)
    assert distance(result.model, teacher, images) < distance(student, teacher, images)
    assert result.top1_after is None
    assert result.agreement is None
    assert result.cosine is not None
    assert result.cosine > 0.9
    with pytest.raises(UsageError, match="needs a model with a head"):
        finetune(student, teacher, images, options=options(labels=True))


def test_best_weights_win_over_worse_last_ones(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor
) -> None:
    """Training towards another teacher spoils the model: the first evaluation stays the best."""
    with torch.inference_mode():
        labels = student(images).argmax(1)
    spoiler = copy.deepcopy(teacher)
    nn.init.normal_(spoiler.head.weight, std=1.0)
    chosen = options(steps=30, lr=3e-3, sched="constant", eval_every=1, eval_share=1, model_ema=False)
    result = finetune(student, spoiler, images, options=chosen, evaluation=[(images, labels)])
    last = finetune(student, spoiler, images, options=chosen)
    assert result.best_step is not None
    assert result.best_step < 30
    assert not same_weights(result.model, last.model)


def test_training_that_leads_away_is_undone(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps far too large: what comes back is what was given, whether or not anything is evaluated."""
    for evaluation in (None, [(images, torch.zeros(24, dtype=torch.int64))]):
        caplog.clear()
        result = finetune(student, teacher, images, options=options(lr=1.0, steps=20), evaluation=evaluation)
        assert same_weights(result.model, student)
        assert result.best_step == 0
        assert "the weights from before are kept" in caplog.text
    helped = finetune(student, teacher, images, options=options(lr=1e-3, steps=20))
    assert helped.best_step is None
    assert not same_weights(helped.model, student)


@pytest.mark.parametrize(("batch_size", "number"), [(1, 8), (3, 3), (24, 1)])
def test_small_batches_are_not_judged_by_one_of_them(images: Tensor, batch_size: int, number: int) -> None:
    judged = unseen_crops(TensorBatches(images, batch_size=batch_size))
    assert [len(batch) for batch, _ in judged] == [batch_size] * number


@pytest.mark.parametrize(
    ("batch_size", "steps", "number"),
    [(1, 200, 10), (1, 10_000, 64), (16, 20, 1), (16, 60, 3), (16, 140, 4), (32, 200, 2), (256, 1000, 1)],
)
def test_the_longer_a_run_the_more_images_judge_it(batch_size: int, steps: int, number: int) -> None:
    """Up to 64, at no more than a twentieth of its time: 16 images are too few to tell 0.53 from 0.55."""
    assert batches_judged(batch_size, steps) == number


def test_the_moving_average_is_what_comes_back(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor
) -> None:
    averaged = finetune(student, teacher, images, options=options())
    raw = finetune(student, teacher, images, options=options(model_ema=False))
    still = finetune(student, teacher, images, options=options(model_ema_decay=0.0))
    assert not same_weights(averaged.model, raw.model)
    assert same_weights(still.model, raw.model)


def test_gradient_checkpointing_changes_nothing(images: Tensor) -> None:
    """The recomputed forward pass must not update the running statistics of the branches a second time."""
    teacher = make_teacher()
    student = make_student(teacher).train()
    plain, again = copy.deepcopy(student), copy.deepcopy(student)
    again.set_grad_checkpointing(True)
    for model in (plain, again):
        distiller = Distiller(model, teacher, block_names(teacher), TrainOptions(), None)
        distiller.loss(images, torch.empty(0)).backward()
        distiller.close()
    for (name, one), (_, other) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    assert all(torch.equal(one, other) for one, other in zip(plain.buffers(), again.buffers(), strict=True))
    result = finetune(student, teacher, images, options=options(grad_checkpointing=True, steps=2))
    assert not result.model.grad_checkpointing


def test_mixed_precision_keeps_float32_weights(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor
) -> None:
    seen: list[torch.dtype] = []
    teacher.blocks[0].mlp.fc1.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    result = finetune(student, teacher, images, options=options(amp=True, steps=2))
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}
    assert torch.bfloat16 in seen
    assert torch.isfinite(result.model(images)).all()


def test_steps_that_are_not_finite_are_skipped_and_many_end_the_run(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor
) -> None:
    class Spoiled(TensorBatches):
        def __init__(self, bad: set[int]) -> None:
            super().__init__(images, batch_size=8)
            self.bad = bad

        def batches(self, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            for step, (batch, labels) in enumerate(super().batches(start_step), start_step):
                yield (batch * float("nan") if step in self.bad else batch), labels

    result = finetune(student, teacher, Spoiled({1, 3}), options=options(statistics_batches=1))
    assert result.skipped_steps == 2
    assert all(torch.isfinite(tensor).all() for tensor in result.model.state_dict().values())
    with pytest.raises(DivergedError, match="a lower `lr`"):
        finetune(student, teacher, Spoiled(set(range(100))), options=options(steps=10))


def test_models_that_do_not_match_are_refused(student: VisionTransformer, images: Tensor) -> None:
    with pytest.raises(UsageError, match="not the same task"):
        finetune(student, make_teacher(num_classes=7), images, options=options())
    narrow = timm.create_model("test_vit", num_classes=5, img_size=SIZE).eval()
    with pytest.raises(UsageError, match=r"must be the model that was converted|do not match"):
        finetune(student, narrow, images, options=options())


def test_the_callers_random_numbers_are_left_alone(
    student: VisionTransformer, teacher: VisionTransformer, images: Tensor
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    finetune(student, teacher, images, options=options(steps=1))
    assert torch.equal(torch.rand(1), expected)


def test_one_output_guesses_by_its_sign() -> None:
    """Two models of one output agree on an image where its sign is the same, not always."""
    first, second = make_teacher(num_classes=1), make_teacher(num_classes=1)
    images = torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        second.head.weight.neg_()
        for model in (first, second):
            model.head.bias.zero_()
    held_out = HeldOut([(images, torch.full((8,), -1))], first, torch.device("cpu"), lambda: None, silent)
    assert held_out.score(first, None, "evaluate").agreement == 1
    assert held_out.score(second, None, "evaluate").agreement == 0


def test_layers_that_remember_their_biases_are_trained() -> None:
    """timm keeps the position biases of an evaluation (timm/models/efficientvit_msra.py), and training evaluates."""
    torch.manual_seed(0)
    teacher = timm.create_model("efficientvit_m0", img_size=64, num_classes=5).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    for given in ({"lr": 1e-2}, {}):
        trained = finetune(
            student, teacher, TensorBatches(images, batch_size=4), options=options(steps=3, **given)
        ).model
        moved = dict(trained.named_parameters())
        biases = [name for name in moved if name.endswith("attention_biases")]
        assert not torch.equal(moved[biases[0]], student.get_parameter(biases[0]))
        with torch.no_grad():
            assert torch.equal(trained(images), copy_of(trained)(images))
