# %% [markdown]
# This page is a script that is run on every change; its claims are assertions.
#
# ## An activation needs nothing
#
# A function written in PyTorch operations is read from the graph; its dual is computed from the
# function itself.

# %%
import torch
from torch import nn

import tangency as tg


class Snake(nn.Module):
    def forward(self, x):
        return x + torch.sin(x) ** 2


x = torch.randn(20, 5, dtype=torch.float64)
model = nn.Sequential(nn.Linear(5, 64), Snake(), nn.Linear(64, 1))
print(tg.InfiniteKernel(model, x).ntk(x).shape)

# %% [markdown]
# ## A closed form, by one function
#
# Where you know \(\mathbb{E}[\varphi(u)\varphi(v)]\) as a function of the variances and the
# covariance of \(u\) and \(v\), say so: it is faster.
# The derivative that the NTK needs follows by automatic differentiation, and the formula is
# checked against quadrature at once.


# %%
@tg.activation(lambda q1, q2, c: torch.exp(c - (q1 + q2) / 2))
def fourier(x):
    return torch.sin(x) + torch.cos(x)


class Fourier(nn.Module):
    def forward(self, x):
        return fourier(x)


class Plain(nn.Module):
    def forward(self, x):
        return torch.sin(x) + torch.cos(x)


def network(activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 64), activation, nn.Linear(64, 1))


closed = tg.InfiniteKernel(network(Fourier()), x).ntk(x)
numerical = tg.InfiniteKernel(network(Plain()), x).ntk(x)
torch.testing.assert_close(closed, numerical)

# %% [markdown]
# ## A rule for an operation of your own
#
# An operation that the graph shows as one node (`torch.library.custom_op`) needs two functions:
# which axes its result has, and what it is as a random
# variable. Here, an operation that keeps every other position of a sequence and doubles it. A
# rule is written in terms of values:
# `Take` selects positions, `Sum` forms linear combinations, `Weight`, `Composite`, `Average`,
# `Mapped` are others (`tangency.infinite.values`).

# %%
from tangency.infinite.lowering import rule
from tangency.infinite.values.position import Take
from tangency.infinite.values.sum import Sum, Term
from tangency.program.axes import resolve
from tangency.program.axis_rules import axis_rule
from tangency.program.axis_rules.indexing import cut


@torch.library.custom_op("mylibrary::thin", mutates_args=())
def thin(x: torch.Tensor) -> torch.Tensor:
    return 2 * x[:, ::2]


@thin.register_fake
def _(x):
    return torch.empty_like(x[:, ::2])


@axis_rule("mylibrary::thin")
def thin_axes(node, axes):
    batch, tokens, width = axes(node.args[0])
    return batch, cut(tokens, range(0, node.args[0].meta["val"].shape[1], 2)), width


@rule("mylibrary::thin")
def thin_value(lowering, node, start, length):
    (source,) = node.args
    before, after = (resolve(lowering.program.axes[n][1])[0] for n in (source, node))
    value = lowering.strand(source, start, length)
    kept = Take(value, before, after, range(0, before.size, 2))
    return Sum(kept.positions, [Term(kept, 2.0)])


class Sequence(nn.Module):
    def __init__(self, operation):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.mix, self.last = nn.Linear(5, 64), nn.Linear(64, 64), nn.Linear(64, 1)
        self.operation = operation

    def forward(self, x):
        hidden = torch.relu(self.embed(x))
        return self.last(torch.relu(self.mix(self.operation(hidden))).mean(1))


tokens = torch.randn(6, 8, 5, dtype=torch.float64)
ours = tg.InfiniteKernel(Sequence(thin), tokens).ntk(tokens)
plain = tg.InfiniteKernel(Sequence(lambda h: 2 * h[:, ::2]), tokens).ntk(tokens)
torch.testing.assert_close(ours, plain)

# %% [markdown]
# Check a rule of your own as ours are checked: the mean of `tg.EmpiricalKernel` over many
# initialisations of the same module approaches it as
# the module gets wider.
