"""What weights at the start hide of a network, and the trained ones show."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.sample_axis import find_samples

FEATURES, STEPS, BATCH = 6, 5, 32


class Closed(nn.Module):
    """A straight map and a branch that adds nothing at first, in one of the ways to close it."""

    def __init__(self, way, activation=nn.Tanh):
        super().__init__()
        self.straight, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, 1)
        self.body = nn.Sequential(nn.Linear(8, 8), activation(), nn.Linear(8, 8))
        gate = {"gate": 0.0, "layer scale": 1e-6}.get(way, 1.0)
        self.gate = nn.Parameter(torch.full((8,), gate))
        self.opened = 0.0 if way == "number" else 1.0  # by the loop
        if way == "last layer":
            nn.init.zeros_(self.body[-1].weight)
            nn.init.zeros_(self.body[-1].bias)

    def forward(self, x):
        x = self.straight(x)
        return self.head(x + self.opened * self.gate * self.body(x))


def train(model, steps=60, lr=1e-2):
    torch.manual_seed(0)
    inputs = torch.randn(256, FEATURES)
    targets = inputs[:, :1] + 0.5 * inputs[:, 1:2].square()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with Doctor(model, optimizer, nn.MSELoss()) as doctor:
        for step in range(steps):
            rows = torch.randint(len(inputs), (BATCH,))
            if isinstance(model, Closed) and step == steps // 3:
                model.opened = 1.0
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs[rows]), targets[rows])
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs[rows], targets[rows])
        return doctor.report()


@pytest.mark.parametrize("way", ["gate", "layer scale", "last layer", "number", "none"])
def test_a_branch_that_starts_closed_is_nonlinear_all_the_same(way):
    report = train(Closed(way))
    assert all(finding.cause != "no_nonlinearity" for finding in report.findings)


@pytest.mark.parametrize("way", ["gate", "layer scale", "last layer", "number"])
def test_a_branch_without_an_activation_is_straight_however_it_starts(way):
    report = train(Closed(way, activation=lambda: nn.LeakyReLU(1.0)))
    assert report.main_cause == "no_nonlinearity"


def test_weights_that_no_step_opens_are_opened_by_noise():
    torch.manual_seed(0)
    model = Closed("layer scale")
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = train(model, lr=0.0)
    assert report.evidence.network.bend > 1e-3
    assert report.evidence.network.trained_bend < 1e-5
    assert all(finding.cause != "no_nonlinearity" for finding in report.findings)
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())


class Weighing(nn.Module):
    """Weighs the steps of a sequence by scores that are small at first."""

    def __init__(self, over):
        super().__init__()
        self.score, self.head, self.over = nn.Linear(FEATURES, 1), nn.Linear(FEATURES, 4), over
        nn.init.normal_(self.score.weight, std=1e-4)

    def forward(self, x):
        weights = self.score(x).softmax(dim=self.over)
        return self.head((weights * x).sum(dim=1))


def train_weighing(over):
    """Name the class of the marked step: the first four features hold it, the last one the mark."""
    torch.manual_seed(0)
    model = Weighing(over)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    with Doctor(model, optimizer, nn.CrossEntropyLoss()) as doctor:
        for _ in range(150):
            what, where = torch.randint(4, (BATCH, STEPS)), torch.randint(STEPS, (BATCH,))
            mark = F.one_hot(where, STEPS).unsqueeze(2).float()
            x = torch.cat([F.one_hot(what, 4).float(), mark, torch.randn(BATCH, STEPS, 1)], dim=2)
            targets = what.gather(1, where[:, None])[:, 0]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, targets)
        return doctor.report()


def test_samples_that_mix_once_the_net_has_learnt_are_seen():
    torch.manual_seed(0)
    x, targets = torch.randn(BATCH, STEPS, FEATURES), torch.randint(4, (BATCH,))
    with torch.no_grad():
        assert find_samples(Weighing(0).eval(), Call((x,)), targets).mixing < 0.01
    report = train_weighing(over=0)
    assert report.evidence.network.mixing > 0.1
    assert (report.main_cause, report.main.confidence) == ("batch_mixing", "certain")


def test_weights_over_the_steps_mix_nothing():
    report = train_weighing(over=1)
    assert report.evidence.network.mixing == 0
    assert report.healthy


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_transformer_that_skips_padding_keeps_samples_apart(nested):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

        def forward(self, x):
            return self.head(self.encoder(self.embed(x), src_key_padding_mask=x == 0)[:, 0])

    torch.manual_seed(0)
    x = torch.randint(1, 9, (BATCH, STEPS))
    x[::2, 3:] = 0
    with torch.no_grad():
        samples = find_samples(Padded().eval(), Call((x,)), torch.randint(3, (BATCH,)))
    assert (samples.dependence[0], samples.mixing) == ("apart", 0.0)


class Fused(nn.Module):
    """A transformer that skips the padding of its inputs (B, T), which it may nest."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.embed, self.head = nn.Embedding(9, 16, padding_idx=0), nn.Linear(16, 3)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        outputs = self.encoder(self.embed(x), src_key_padding_mask=x == 0)
        return self.head(outputs[:, 0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_fused_transformer_of_padded_inputs_is_looked_into():
    torch.manual_seed(0)
    x = torch.randint(1, 9, (512, 7))
    x[::2, 4:] = 0
    targets = x[:, 0] % 3
    model = Fused()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss_fn = nn.CrossEntropyLoss()
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for rows in torch.arange(512).repeat(10).split(64):
            loss = loss_fn(model(x[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x[rows], targets[rows])
        model.eval()
        doctor.validate(x[:100], targets[:100])
        report = doctor.report()
        with torch.no_grad():
            fused = model(x[:4])
    assert report.troubles == []
    assert report.healthy is True
    assert report.evidence.network.depth > 4
    assert torch.backends.mha.get_fastpath_enabled()
    assert fused.isfinite().all()


class Normalised(nn.Module):
    """Embeddings (B, 4) that are normalised along an axis, or made a basis of."""

    def __init__(self, way):
        super().__init__()
        self.way, self.net = way, nn.Linear(FEATURES, 4)

    def forward(self, x):
        found = self.net(x)
        return torch.linalg.qr(found).Q if self.way == "basis" else F.normalize(found, dim=self.way)


@pytest.mark.parametrize("way", [0, 1, "basis"])
def test_embeddings_that_are_normalised_over_the_batch_are_found(way):
    torch.manual_seed(0)
    model = Normalised(way)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Doctor(model, optimizer) as doctor:
        for _ in range(STEPS):
            x = torch.randn(BATCH, FEATURES)
            first, second = model(x), model(x + 0.1 * torch.randn_like(x))
            loss = F.cross_entropy(first @ second.T / 0.2, torch.arange(BATCH))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x)
        report = doctor.report()
    assert report.evidence.network.unit_features == (way == 0)
    accused = [f.cause for f in report.findings if "over the batch axis" in f.summary]
    assert accused == ["batch_mixing"] * (way == 0)


class OfSeveralLengths(nn.Module):
    """Reads sequences (B, T, 3) of several lengths, and returns scores (T, B, 4)."""

    def __init__(self, viewed):
        super().__init__()
        self.viewed = viewed
        self.rnn, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        hidden, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        scores = self.head(hidden)
        if self.viewed:
            return scores.reshape(scores.shape[1], scores.shape[0], 4)
        return scores.transpose(0, 1)


@pytest.mark.parametrize("viewed", [True, False])
@pytest.mark.parametrize("longest", [0, BATCH - 1])
def test_samples_that_mix_are_found_beside_their_lengths(viewed, longest):
    torch.manual_seed(0)
    lengths = torch.randint(4, 9, (BATCH,))
    lengths[longest] = 10
    call = Call((torch.randn(BATCH, 10, 3), lengths))
    with torch.no_grad():
        samples = find_samples(OfSeveralLengths(viewed).eval(), call, torch.randint(4, (BATCH, 5)))
    assert (samples.mixing or 0.0) > 0.1 if viewed else samples.mixing == 0.0
