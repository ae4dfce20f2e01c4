"""One loss curve for every cut of the global batch, and the guards that make it so."""

import json

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from integration.runs import NO_DROPOUT, curve, run_recipe

from finelaunch.data.features import Features
from finelaunch.data.sampler import GlobalBatchSampler, TrainingRows
from finelaunch.tasks.base import IGNORED
from finelaunch.training import trainer as trainer_module
from finelaunch.training.trainer import EpochLoader

pytestmark = pytest.mark.integration

CUTS = (8, 4, 2)
LIMIT = 1e-6
EVERY_STEP = (
    "training.logging_steps=1",
    "training.save_strategy=no",
    "training.eval_strategy=no",
    "evaluation.base=false",
)
RAGGED = {
    "imdb/smoke": "data.train.max_samples=50",
    "squad_v2/smoke": "data.train.max_samples=17",
    "domain_assistant/smoke": "data.train.max_samples=40",
}


def worst_difference(first, second):
    assert [row[0] for row in first] == [row[0] for row in second]
    numbers = np.array([row[1:] for row in first]), np.array([row[1:] for row in second])
    return float((np.abs(numbers[0] - numbers[1]) / np.abs(numbers[0])).max())


def cut_run(recipe, folder, per_device, *overrides):
    return run_recipe(
        recipe,
        folder / f"{recipe.split('/')[0]}-{per_device}",
        *EVERY_STEP,
        *NO_DROPOUT[recipe],
        RAGGED[recipe],
        "training.max_grad_norm=0.5",
        f"launch.per_device_batch_size={per_device}",
        *overrides,
    )


@pytest.mark.parametrize("recipe", NO_DROPOUT)
def test_loss_and_gradient_do_not_depend_on_the_cut(recipe, tmp_path):
    runs = {size: cut_run(recipe, tmp_path, size) for size in CUTS}
    engine = json.loads(runs[2].manifest.read_text())["engine"]
    assert (engine["per_device_batch_size"], engine["gradient_accumulation_steps"]) == (2, 4)
    features = json.loads(runs[8].data_report.read_text())["splits"]["train"]["num_features"]
    assert features % 8, "the last global batch must not be full"
    whole = curve(runs[8])
    assert len(whole) == 2 * -(-features // 8)
    losses = [loss for _, loss, _ in whole]
    assert max(losses) > 1.02 * min(losses), "the losses must move, or equal curves would mean little"
    for size in CUTS[1:]:
        assert worst_difference(whole, curve(runs[size])) <= LIMIT


def test_models_own_loss_would_depend_on_the_cut(tmp_path, monkeypatch):
    """Without the loss rule, the mean of each micro-batch is taken, and accumulation adds the means up."""

    def own_loss(row_losses):
        def compute_loss(outputs, labels, num_items_in_batch):
            return row_losses(outputs, labels).mean()

        return compute_loss

    monkeypatch.setattr(trainer_module, "loss_rule", own_loss)
    whole, cut = (curve(cut_run("imdb/smoke", tmp_path, size)) for size in (8, 2))
    assert worst_difference(whole, cut) > 0.1


def test_padding_would_enter_the_loss_without_the_mask(tmp_path, monkeypatch):
    from finelaunch.tasks.question_answering import QuestionAnswering

    monkeypatch.setattr(QuestionAnswering, "prepare", lambda self, model: None)
    short = "task.max_length=64"
    whole, cut = (
        curve(cut_run("squad_v2/smoke", tmp_path, size, "training.length_window_batches=1", "task.stride=4", short))
        for size in (8, 2)
    )
    assert worst_difference(whole, cut) > 1e-4


def test_a_global_batch_without_targets_gives_zero_not_nan():
    rule = trainer_module.loss_rule(lambda outputs, labels: outputs["logits"].sum(-1) * 0)
    logits = torch.ones(4, 2, requires_grad=True)
    loss = rule({"logits": logits}, torch.full((4,), IGNORED), torch.tensor(0.0))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.isnan().any()


def rows_and_loader(num_rows, **cut):
    features = Features.from_lists(
        {"input_ids": [[1] * (3 + row % 5) for row in range(num_rows)], "labels": list(range(num_rows))}
    )
    sampler = GlobalBatchSampler(features.lengths, 8, seed=1, **cut)
    return EpochLoader(
        TrainingRows(features, IGNORED), batch_sampler=sampler, collate_fn=lambda rows: [int(r["labels"]) for r in rows]
    )


def test_every_row_is_seen_once_an_epoch_and_a_prepared_loader_would_miss_half_of_them():
    """The loader is not passed through accelerate, which shards it a second time."""
    cuts = [{"per_device_batch_size": 2, "world_size": 2, "rank": rank} for rank in range(2)]
    ours = sorted(label for cut in cuts for batch in rows_and_loader(61, **cut) for label in batch if label != IGNORED)
    assert ours == list(range(61))
    prepared = [
        label
        for rank, cut in enumerate(cuts)
        for batch in prepare_data_loader(
            rows_and_loader(61, **cut), num_processes=2, process_index=rank, even_batches=False, put_on_device=False
        )
        for label in batch
        if label != IGNORED
    ]
    assert len(prepared) < 40
