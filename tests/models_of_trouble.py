"""Small models, each with one habit that splitters stumble over."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.act(self.first(x))) + x)


class SkipOrNot(nn.Module):
    """A block whose skip exists only where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 1)
        )
        self.has_skip = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.has_skip else self.body(x)


class Branches(nn.Module):
    """Two parallel branches, concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(channels, channels // 2, 1)
        self.right = nn.Conv2d(channels, channels // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


def residual_net() -> nn.Module:
    """Stem, two residual blocks, two blocks of which one skips, branches, head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        ResidualBlock(8),
        ResidualBlock(8),
        SkipOrNot(8, 8),
        SkipOrNot(8, 12),
        Branches(12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(12, 10),
        nn.ReLU(),
        nn.Linear(10, 5),
    )


class CalledTwice(nn.Module):
    """One block, called twice, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.block = ResidualBlock(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(self.stem(x))))


class TiedWeights(nn.Module):
    """An encoder and a decoder that share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 9, bias=False)
        self.middle = nn.Linear(9, 9)
        self.decode = nn.Linear(9, 6, bias=False)
        self.decode.weight = nn.Parameter(torch.randn(6, 9))
        self.again = nn.Linear(6, 9, bias=False)
        self.again.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.middle(torch.relu(self.encode(x))))
        return self.again(torch.relu(self.decode(hidden)))


class ChangesAView(nn.Module):
    """Writes into a slice of a tensor that is read again later."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden[:, 0] += 1.0
        return self.second(torch.relu(hidden))


class ReadsTheOldName(nn.Module):
    """Changes a tensor in place and goes on with its old name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden.add_(1.0)
        return self.second(hidden) * hidden


class ReadsTheBatchSize(nn.Module):
    """Reads the number of rows once and uses it everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(2, 2)
        self.third = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        parts = torch.relu(self.second(torch.relu(self.first(x)).view(rows * 4, 2)))
        return self.third(torch.relu(parts).reshape(rows, 8))


class ManyInsAndOuts(nn.Module):
    """Keyword inputs, a dict of outputs, one of them made early."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(6, 8)
        self.extra = nn.Linear(3, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, image: Tensor, *, extra: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.image(image)) + self.extra(extra)
        return {"features": features, "scores": self.last(torch.relu(features))}


class StandsOnWeights(nn.Module):
    """Makes a table from weights alone and uses it in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 6))
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.softmax(self.table, 0).sum(0)
        hidden = torch.relu(self.first(x) + bias)
        return self.second(hidden) + bias


class SelfGated(nn.Module):
    """An activation written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class ForkAtTheRoot(nn.Module):
    """Two towers over the same rows, joined at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
        self.right = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
        self.join = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.left(x), self.right(x)], 1))


def long_chain(num_layers: int) -> nn.Module:
    """A chain of that many linear layers, each with a ReLU."""
    layers: list[nn.Module] = []
    for _ in range(num_layers):
        layers += [nn.Linear(4, 4), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Contexts(nn.Module):
    """Parts of its forward run under contexts, two of them one within the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.third = nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            hidden = torch.relu(self.first(x))
            with torch.autocast("cpu", enabled=False):
                hidden = torch.relu(self.second(hidden))
            hidden = torch.relu(self.third(hidden))
        return self.last(hidden)


class OneToken(nn.Module):
    """Goes on with one token of a sequence: a tensor with gaps between its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 33))
        self.embed = nn.Linear(20, 33)
        self.norm = nn.LayerNorm(33)
        self.head = nn.Linear(33, 40)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        return self.head(self.norm(tokens)[:, 0])


class RowsLast(nn.Module):
    """A convolutional net that permutes to channels last for its normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.norm = nn.LayerNorm(16)
        self.second = nn.Conv2d(16, 24, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.relu(self.norm(self.first(x).permute(0, 2, 3, 1)))
        return self.second(rows.permute(0, 3, 1, 2))


class UShape(nn.Module):
    """Goes down and up again, with a skip at every size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(4))
        self.up = nn.ModuleList(nn.Conv2d(16, 8, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for layer in self.down:
            x = torch.relu_(layer(x))
            if len(skips) < len(self.up):
                skips.append(x)
                x = nn.functional.max_pool2d(x, 2)
        for layer in self.up:
            x = nn.functional.interpolate(x, scale_factor=2.0)
            x = torch.relu_(layer(torch.cat([x, skips.pop()], 1)))
        return x


class Pyramid(nn.Module):
    """A backbone with results of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = ResidualBlock(8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.block(torch.relu(self.stem(x)))
        return {"fine": fine, "coarse": torch.relu(self.down(fine))}


class Detector(nn.Module):
    """Keeps what scores well: how much that is depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Pyramid()
        self.score = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        scores = torch.cat([self.score(level).flatten() for level in features.values()])
        return scores[scores > 0]
