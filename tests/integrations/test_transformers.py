"""The callback in real trainings of the Trainer of Transformers, on models made from a config."""

import copy

import pytest
import torch

pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
pytest.importorskip("accelerate", reason="the extra `transformers` is not installed")

import transformers

from debugnn.integrations.transformers import DoctorCallback

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

WORDS, LENGTH, SAMPLES = 24, 12, 512


@pytest.fixture(scope="module")
def texts():
    """Texts whose label is whether most of their first words are of the first half."""
    torch.manual_seed(0)
    words = torch.randint(2, WORDS, (SAMPLES, LENGTH))
    labels = (words[:, :6] < WORDS // 2).sum(dim=1).gt(3).long()
    return [{"input_ids": w, "labels": y} for w, y in zip(words, labels, strict=True)]


@pytest.fixture(scope="module")
def sequences():
    """Sequences that count up by a number of their own, for a language model."""
    torch.manual_seed(0)
    start, step = torch.randint(WORDS, (SAMPLES, 1)), torch.randint(1, 4, (SAMPLES, 1))
    words = (start + step * torch.arange(LENGTH)) % WORDS
    return [{"input_ids": w, "labels": w.clone()} for w in words]


@pytest.fixture
def classifier():
    transformers.set_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=WORDS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=16, num_labels=2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


@pytest.fixture
def language_model():
    transformers.set_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=WORDS, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0,
        )
    )  # fmt: skip


def train(folder, model, rows, callback=None, trainer=transformers.Trainer, **options):
    """Train with a seed; return the trainer."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
        save_strategy="no", eval_strategy="epoch", lr_scheduler_type="constant",
        **{"num_train_epochs": 6, "per_device_train_batch_size": 16, "learning_rate": 3e-3,
           **options},
    )  # fmt: skip
    made = trainer(
        model=model, args=arguments, train_dataset=rows[:384], eval_dataset=rows[384:],
        callbacks=[callback] if callback else [],
    )  # fmt: skip
    made.train()
    return made


def assert_same(one, other):
    for mine, others in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, others)


def test_a_sound_training_is_healthy_and_the_same_as_without(tmp_path, classifier, texts, capsys):
    plain, callback = copy.deepcopy(classifier), DoctorCallback()
    trainer = train(tmp_path, classifier, texts, callback)
    train(tmp_path, plain, texts)
    assert callback.report.healthy is True, callback.report.details()
    assert callback.report.troubles == []
    evidence = callback.report.evidence
    assert (evidence.task, evidence.loss.error) == ("classes", None)
    assert (evidence.loop.steps, evidence.loop.optimizer_steps) == (144, 144)
    assert evidence.loop.loss_ratio == pytest.approx(1.0, abs=1e-4)
    assert len(evidence.outcome.validations) == 6
    assert_same(classifier, plain)
    assert "diagnosis: healthy" in capsys.readouterr().out
    logged = trainer.state.log_history[-1]
    assert (logged["doctor/healthy"], logged["doctor/main_cause"]) == (True, "healthy")
    assert not {"training_step", "prediction_step"} & set(vars(trainer))


def test_label_smoothing_and_accumulated_batches_are_sound(tmp_path, classifier, texts):
    plain, callback = copy.deepcopy(classifier), DoctorCallback()
    options = {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2,
               "per_device_train_batch_size": 8}  # fmt: skip
    train(tmp_path, classifier, texts, callback, **options)
    train(tmp_path, plain, texts, **options)
    assert callback.report.healthy is True, callback.report.details()
    evidence = callback.report.evidence
    assert (evidence.loop.steps, evidence.loop.optimizer_steps) == (144, 144)
    assert evidence.loss.error is None
    assert evidence.loop.loss_ratio == pytest.approx(1.0, abs=0.15)
    assert_same(classifier, plain)


def test_a_language_models_labels_stand_at_their_outputs(tmp_path, language_model, sequences):
    callback = DoctorCallback()
    train(tmp_path, language_model, sequences, callback, num_train_epochs=10)
    report = callback.report
    assert report.healthy is not False, report.details()
    # The Trainer divides by all labels, the first of a sequence included.
    assert report.evidence.loop.loss_ratio == pytest.approx(1 - 1 / LENGTH, abs=1e-4)
    assert report.outcome["skill"] > 0.4  # the first words of a sequence tell nothing of the next


def test_a_training_that_stands_still_is_unhealthy(tmp_path, classifier, texts):
    callback = DoctorCallback()
    train(tmp_path, classifier, texts, callback, learning_rate=1e-8)
    assert callback.report.healthy is False
    assert "does not learn" in callback.report.reason


def test_a_loss_of_ones_own_is_tried_out(tmp_path, classifier, texts):
    """A softmax before a cross-entropy, in an overridden `compute_loss`."""

    def twice(outputs, labels):
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]
        return torch.nn.functional.cross_entropy(logits.softmax(dim=-1), labels)

    class Own(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            outputs = model(**inputs)
            loss = twice(outputs, inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    unknown, told = DoctorCallback(), DoctorCallback(twice)
    train(tmp_path, copy.deepcopy(classifier), texts, unknown, Own, num_train_epochs=2)
    assert unknown.report.evidence.loss.shapes == []  # nothing is said about a loss not known
    train(tmp_path, classifier, texts, told, Own, num_train_epochs=2)
    assert told.report.evidence.loss.shapes == [[16, 2], [16]]
    assert told.report.evidence.loop.loss_ratio == pytest.approx(1.0, abs=1e-4)


def test_it_is_a_callback_of_a_trainer_only(classifier):
    with pytest.raises(RuntimeError, match=r"transformers\.Trainer"):
        DoctorCallback().on_train_begin(None, None, None, model=classifier)
