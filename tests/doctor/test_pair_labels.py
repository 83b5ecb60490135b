"""Labels of pairs: which of the two the loss draws together, and which pairs are alike."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.pair_labels import pair_facts


class Twin(nn.Module):
    """Embeds two inputs by one net, and gives their distance or both embeddings."""

    def __init__(self, distance=True):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 6))
        self.distance = distance

    def forward(self, one, other):
        one, other = self.net(one), self.net(other)
        return (one - other).square().sum(dim=1).sqrt() if self.distance else (one, other)


def pairs(count, alike, seed=0):
    """Points of six kinds; the label `alike` is that of two of one kind."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(6, 10, generator=generator)
    first = torch.randint(6, (count,), generator=generator)
    same = torch.rand(count, generator=generator) < 0.5
    second = torch.where(same, first, (first + 1) % 6)
    one, other = (
        kinds[k] + 0.7 * torch.randn(count, 10, generator=generator) for k in (first, second)
    )
    return one, other, torch.where(same, alike, 1 - alike).float()


def contrastive(distance, labels):
    """Hadsell et al. 2006: pairs of label 0 are drawn together."""
    return ((1 - labels) * distance.square() + labels * (2 - distance).clamp_min(0).square()).mean()


def of_embeddings(outputs, labels):
    return contrastive(F.pairwise_distance(*outputs), labels)


def of_angles(outputs, labels):
    return F.cosine_embedding_loss(*outputs, 1 - 2 * labels, margin=0.2)


@pytest.mark.parametrize("loss", [contrastive, of_embeddings, of_angles])
@pytest.mark.parametrize("alike", [0, 1])
def test_the_label_that_a_loss_draws_together_is_found(loss, alike):
    torch.manual_seed(0)
    one, other, labels = pairs(200, alike)
    facts = pair_facts(Twin(loss is contrastive), [Batch(Call((one, other)), labels)], loss)
    assert (facts.together, facts.pairs) == (0.0, 200)
    near = (one - other).square().mean(dim=1)
    own, rest = near[labels == 0], near[labels == 1]
    assert facts.nearer == pytest.approx((own[:, None] < rest[None, :]).float().mean().item())
    assert (facts.nearer > 0.5) == (alike == 0)


def test_what_is_no_distance_is_left_alone():
    """A probability that two inputs are alike is high where a distance is low."""
    torch.manual_seed(0)

    class Same(Twin):
        def forward(self, one, other):
            return torch.sigmoid(2 - super().forward(one, other))

    one, other, labels = pairs(100, 1)
    batch = Batch(Call((one, other)), labels)
    assert pair_facts(Same(), [batch], F.binary_cross_entropy) is None
    third = Batch(Call((one, other, other)), labels)
    assert pair_facts(Twin(), [third], contrastive) is None


@pytest.mark.parametrize(("alike", "named"), [(0, False), (1, True)])
@pytest.mark.parametrize("validated", [True, False])
def test_labels_of_pairs_that_the_loss_takes_the_other_way(alike, named, validated):
    torch.manual_seed(0)
    one, other, labels = pairs(3000, alike)
    model = Twin()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with Doctor(model, optimizer, loss_fn=contrastive) as doctor:
        for batch in torch.arange(3000).repeat(4).split(50):
            optimizer.zero_grad()
            given = one[batch], other[batch]
            loss = contrastive(model(*given), labels[batch])
            loss.backward()
            optimizer.step()
            doctor.step(loss, given, labels[batch])
        if validated:
            doctor.validate((one[:500], other[:500]), labels[:500])
        report = doctor.report()
    assert (report.main_cause == "bad_labels") is named, report.details()
    if named:
        assert (report.main.severity, report.main.confidence) == ("error", "shown")
    else:
        assert report.healthy is True
