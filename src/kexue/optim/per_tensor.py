"""What our optimizers share: one update per tensor, and everything around it.

    for every parameter x with a gradient g:   x, state ← update(x, g, state)                  (1)

An optimizer of this folder says what (1) is; this file says when it runs. Around each update:

- A gradient that is sparse or complex is refused, by the name of its parameter.
- A gradient with NaN or Inf follows the `nonfinite` policy and never reaches the state: "skip"
  leaves this tensor and its state as they are, "raise" stops with a `FloatingPointError`, "ignore"
  does not look. On a CPU that costs one pass over the gradient. On an accelerator the old values
  are put back by a `torch.where`, so `step` reads nothing back to the host (except under "raise").
- A parameter in half precision is updated in a float32 copy, with float32 state, and rounded to
  nearest or, with `stochastic_rounding`, at random.
- No temporary is larger than one tensor; `step_in_backward` runs (1) as soon as a gradient is
  complete and frees it, so that no two gradients need to exist at the same time.
- On a CPU with a C compiler, float32 tensors take a compiled loop (`native.py`); all else takes the
  same formula in torch operations, which also run under `torch.compile`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kexue.optim.processes import processes
from kexue.optim.rounding import round_stochastically_
from kexue.tensor_loop import Loop

__all__ = ["PerTensorOptimizer", "pair", "parameter_name"]

HALVES = (torch.bfloat16, torch.float16)
ALL_FINITE = Loop(__file__, "all_finite", "xn", returns="int")


def all_finite(x: Tensor) -> bool:
    """Whether no element is NaN or infinite; waits for an accelerator."""
    if ALL_FINITE.takes(x):
        return bool(ALL_FINITE(x, x.numel()))
    return bool(finite_flag(x))


def finite_flag(x: Tensor) -> Tensor:
    """The same as a 0-d tensor: 0·NaN and 0·Inf are NaN, but compilers take 0·x for 0."""
    if torch.compiler.is_compiling():
        return torch.isfinite(x).all()
    return torch.isfinite((x * 0).sum())


def parameter_name(group: dict[str, Any], parameter: Tensor) -> str:
    """How a message calls a parameter: by its name, or by its place and shape."""
    place = next(i for i, p in enumerate(group["params"]) if p is parameter)
    names = group.get("param_names")
    label = names[place] if names else f"parameter {place}"
    return f"{label} of shape {tuple(parameter.shape)}"


def pair(group: dict[str, Any], name: str) -> tuple[float, float]:
    """An option that is two numbers."""
    given = group[name]
    if not (isinstance(given, Sequence) and len(given) == 2):
        raise ValueError(f"{name} must be two numbers, got {given!r}")
    return given[0], given[1]


class PerTensorOptimizer(torch.optim.Optimizer):
    """An optimizer that is one update per tensor; the base of those in this folder.

    A subclass gives `state_names`, `shaped` and `options`, `new_state`, `update` and `check`.
    Defaults common to all: `maximize`, `nonfinite`, `stochastic_rounding` and its `seed`.

    Args:
        params: parameters, named parameters, or groups of either.
        defaults: the options of a group.

    Raises:
        ValueError: an option out of range; parameters on devices of different kinds.
        TypeError: a parameter that is neither real nor floating.
    """

    state_names: ClassVar[tuple[str, ...]] = ()
    """The tensors kept for each parameter."""
    shaped: ClassVar[tuple[str, ...]] = ()
    """Those of the parameter's shape."""
    options: ClassVar[tuple[str, ...]] = ()
    """Names of options by which a saved state is known as one of this class."""
    policies: ClassVar[tuple[str, ...]] = ("skip", "raise", "ignore")

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        common = {"maximize": False, "nonfinite": "skip", "stochastic_rounding": False, "seed": 0}
        self.hooks: dict[Tensor, Any] = {}
        super().__init__(params, common | defaults)

    # what a subclass says

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if an option of the group is out of range."""

    def new_state(self, x: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state before the first update; `x` is in float32 or better."""
        raise NotImplementedError

    def update(self, x: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """(1), in place; `x` and `g` are in float32 or better, `g` is finite unless ignored."""
        raise NotImplementedError

    def refused(self, x: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """What happens to `x` and its state, in place, where g was not finite: nothing."""

    def close(self, group: dict[str, Any]) -> None:
        """After every tensor of a group had its update."""

    def needs_averaged_gradients(self) -> bool:
        """Whether a gradient may not be used before it is averaged over the processes."""
        return processes() > 1

    # when it runs

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient.

        Args:
            closure: computes the loss again and returns it; optional.

        Raises:
            TypeError: a sparse or complex gradient.
            FloatingPointError: a gradient is not finite and `nonfinite` is "raise".
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.step_tensor(parameter, parameter.grad, group)
            self.close(group)
        return loss

    def step_tensor(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """One parameter's update, with all that stands around it."""
        if gradient.layout != torch.strided or gradient.is_complex():
            self.refuse_gradient(parameter, gradient, group)
        half = parameter.dtype in HALVES
        x = parameter.float() if half else parameter
        g = gradient if gradient.dtype == x.dtype else gradient.to(x.dtype)
        if group["maximize"]:
            g = -g
        state = self.state[parameter]
        if not state:
            state.update(self.new_state(x, group))
        policy = group["nonfinite"]
        if policy == "ignore":
            self.update(x, g, state, group)
        elif torch.compiler.is_compiling() or (x.device.type != "cpu" and policy != "raise"):
            self.update_where_finite(x, g, state, group)
        elif all_finite(g):
            self.update(x, g, state, group)
        elif policy == "raise":
            name = parameter_name(group, parameter)
            raise FloatingPointError(
                f"the gradient of {name} holds NaN or Inf; lower the learning rate, train in "
                "float32, or let such steps pass with nonfinite='skip'"
            )
        else:
            self.refused(x, state, group)
        if half:
            self.write_half(parameter, x, group)
        self.tell_autograd(parameter)

    @staticmethod
    def tell_autograd(parameter: Tensor) -> None:
        """That the parameter changed, which it cannot see where a compiled loop did it.

        Otherwise a second `backward` through a graph from before the step would be wrong silently.
        """
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(parameter)

    def update_where_finite(
        self, x: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        """The update, and its undoing where the gradient was not finite, without reading it."""
        finite = finite_flag(g)
        before = {name: tensor.clone() for name, tensor in state.items()}
        other = x.clone()
        self.refused(other, before, group)
        self.update(x, g, state, group)
        x.copy_(torch.where(finite, x, other))
        for name, tensor in state.items():
            tensor.copy_(torch.where(finite, tensor, before[name]))

    def write_half(self, parameter: Tensor, x: Tensor, group: dict[str, Any]) -> None:
        """The float32 copy back into a parameter of half precision."""
        if not group["stochastic_rounding"]:
            parameter.copy_(x)
            return
        generator = None
        if not torch.compiler.is_compiling():  # equal on all processes: from seed and draw alone
            group["draws"] = group.get("draws", 0) + 1
            generator = torch.Generator(parameter.device)
            generator.manual_seed(group["seed"] * 1_000_003 + group["draws"])
        round_stochastically_(parameter, x, generator)

    def step_in_backward(self, model: nn.Module) -> "InBackward":
        """From now on each gradient is used and freed the moment `backward` completes it.

        Of all gradients only the one at hand then exists. `step` is still called after every
        backward pass: it closes the step. Gradient clipping, gradient scaling and
        `zero_grad`-free accumulation need all gradients at once and cannot be had together with
        this.

        Args:
            model: its parameters that this optimizer holds are taken.

        Returns:
            A handle; `remove()` ends it, and so does a `with` block.

        Raises:
            ValueError: no parameter of the model is in this optimizer, or several processes train
                together (the gradient would be used before it is averaged).
            RuntimeError: it is on already.
        """
        if self.hooks:
            raise RuntimeError("step_in_backward is on already; remove() its handle first")
        if self.needs_averaged_gradients():
            raise ValueError(
                "step_in_backward would use gradients before they are averaged over the "
                "processes; train in one process, or call step() after backward"
            )
        mine = {p: i for i, group in enumerate(self.param_groups) for p in group["params"]}
        shared = [p for p in model.parameters() if p in mine and p.requires_grad]
        if not shared:
            raise ValueError(
                f"no trained parameter of this {type(model).__name__} is in the optimizer; "
                "build the optimizer from this model's parameters"
            )

        def use(parameter: Tensor) -> None:
            if parameter.grad is not None:
                with torch.no_grad():
                    group = self.param_groups[mine[parameter]]
                    self.step_tensor(parameter, parameter.grad, group)
                parameter.grad = None

        self.hooks = {p: p.register_post_accumulate_grad_hook(use) for p in shared}
        return InBackward(self)

    # what is refused

    def refuse_gradient(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Says what is wrong with a gradient."""
        name, kind = parameter_name(group, parameter), type(self).__name__
        if gradient.is_complex():
            raise TypeError(f"the gradient of {name} is complex; {kind} takes real parameters")
        raise TypeError(
            f"the gradient of {name} has layout {gradient.layout}; {kind} takes dense gradients: "
            "build the embedding with sparse=False"
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as in `torch.optim.Optimizer`, and checks its options and parameters."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self.check_common(group)
            self.check(group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def check_common(self, group: dict[str, Any]) -> None:
        """The options and parameters of any group."""
        if group["nonfinite"] not in self.policies:
            raise ValueError(
                f"nonfinite must be one of {', '.join(self.policies)}, got {group['nonfinite']!r}"
            )
        first = self.param_groups[0]["params"][:1]
        for parameter in group["params"]:
            if not parameter.is_floating_point():
                name = parameter_name(group, parameter)
                raise TypeError(f"{name} is {parameter.dtype}; real floating numbers are needed")
            if parameter.device.type != first[0].device.type:
                raise ValueError(
                    f"{parameter_name(group, parameter)} is on {parameter.device}, but the first "
                    f"parameter on {first[0].device}; move the whole model before building the "
                    "optimizer"
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in `torch.optim.Optimizer`, but the state is a copy, in float32 or better.

        Options that the saved groups lack have their defaults. A momentum of a dtype of its own
        (`momentum_dtype`) keeps it.

        Raises:
            ValueError: the state is another optimizer's, or of parameters of other shapes.
        """
        for group in state_dict["param_groups"]:
            missing = [name for name in self.options if name not in group]
            if missing:
                raise ValueError(self.foreign(f"its groups have no {missing[0]!r}"))
        for kept in state_dict["state"].values():
            if set(kept) - set(self.state_names):
                raise ValueError(self.foreign(f"it keeps {', '.join(map(repr, sorted(kept)))}"))
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, parameter in zip(ids, parameters, strict=False):
            for name, value in state_dict["state"].get(i, {}).items():
                self.check_saved(name, value, parameter)
        super().load_state_dict(state_dict)
        groups = [group for group in self.param_groups for _ in group["params"]]
        for i, parameter, group in zip(ids, parameters, groups, strict=True):
            exact = torch.promote_types(parameter.dtype, torch.float32)
            for name, value in state_dict["state"].get(i, {}).items():
                own = name in self.shaped and group.get("momentum_dtype") is not None
                counts = name == "step" or not value.is_floating_point()
                dtype = value.dtype if own or counts else exact
                self.state[parameter][name] = value.to(parameter.device, dtype, copy=True)

    def check_saved(self, name: str, saved: Tensor, parameter: Tensor) -> None:
        """Raises ValueError if a saved tensor cannot belong to its parameter."""
        if name in self.shaped and saved.shape != parameter.shape:
            self.refuse_saved(name, saved, parameter)

    @staticmethod
    def refuse_saved(name: str, saved: Tensor, parameter: Tensor) -> None:
        """Says what is wrong with a saved tensor."""
        raise ValueError(
            f"the saved {name!r} has shape {tuple(saved.shape)}, which does not go with a "
            f"parameter of shape {tuple(parameter.shape)}; build the optimizer from the parameters "
            "it was saved with, in their order"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.hooks = getattr(self, "hooks", {})  # a copy has none, a loaded state changes none
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def foreign(self, why: str) -> str:
        """The message about a state of another optimizer."""
        return (
            f"this state_dict was not saved by {type(self).__name__}: {why}, where "
            f"{', '.join(map(repr, self.state_names))} and the options "
            f"{', '.join(map(repr, self.options))} are expected; load it into the optimizer it "
            "came from, or start without it"
        )


class InBackward:
    """Handle of `step_in_backward`."""

    def __init__(self, optimizer: PerTensorOptimizer) -> None:
        self.optimizer = optimizer

    def remove(self) -> None:
        """Gradients are kept again until `step`."""
        for hook in self.optimizer.hooks.values():
            hook.remove()
        self.optimizer.hooks = {}

    def __enter__(self) -> "InBackward":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
