"""LSTM, GRU and RNN, as loops of as many steps as the sequence has."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mixtrain_jax.errors import ModelError
from mixtrain_jax.foreign.onnx_ops.values import Array, Attributes, Operators, flag, known

Activation = Callable[[jax.Array], jax.Array]
State = tuple[jax.Array, ...]  # each [n, hidden]; the first is what comes out
_ACTIVATIONS: dict[str, Activation] = {"Sigmoid": jax.nn.sigmoid, "Tanh": jnp.tanh, "Relu": jax.nn.relu}


class _Weights(NamedTuple):
    """Weights of one direction: `[gates * hidden, inputs]`, `[gates * hidden, hidden]`, biases `[gates * hidden]`."""

    of_input: jax.Array
    of_state: jax.Array
    input_bias: jax.Array
    state_bias: jax.Array
    peephole: jax.Array | None


Step = Callable[[_Weights, tuple[Activation, ...], State, jax.Array], State]


def _gates(w: _Weights, state: jax.Array, from_input: jax.Array, count: int) -> list[jax.Array]:
    return jnp.split(from_input + state @ w.of_state.T + w.state_bias[None], count, axis=-1)


def _rnn_step(w: _Weights, activations: tuple[Activation, ...], state: State, from_input: jax.Array) -> State:
    (f,) = activations
    return (f(_gates(w, state[0], from_input, 1)[0]),)


def _lstm_step(w: _Weights, activations: tuple[Activation, ...], state: State, from_input: jax.Array) -> State:
    f, g, h = activations
    hidden, cell = state
    take, give, keep, new = _gates(w, hidden, from_input, 4)
    peeps = [None] * 3 if w.peephole is None else jnp.split(w.peephole[None], 3, axis=-1)
    if peeps[0] is not None:
        take, keep = take + peeps[0] * cell, keep + peeps[2] * cell
    cell = f(keep) * cell + f(take) * g(new)
    give = give if peeps[1] is None else give + peeps[1] * cell
    return f(give) * h(cell), cell


def _gru_step(linear_before_reset: bool) -> Step:
    def step(w: _Weights, activations: tuple[Activation, ...], state: State, from_input: jax.Array) -> State:
        f, g = activations
        (hidden,) = state
        update, reset, new = jnp.split(from_input, 3, axis=-1)
        of_update, of_reset, of_new = jnp.split(w.of_state, 3)
        update_bias, reset_bias, new_bias = jnp.split(w.state_bias[None], 3, axis=-1)
        update = f(update + hidden @ of_update.T + update_bias)
        reset = f(reset + hidden @ of_reset.T + reset_bias)
        if linear_before_reset:
            new = g(new + reset * (hidden @ of_new.T + new_bias))
        else:
            new = g(new + (reset * hidden) @ of_new.T + new_bias)
        return ((1 - update) * new + update * hidden,)

    return step


class _Sequence(NamedTuple):
    """Inputs `[steps, n, inputs]` and, of each direction, weights and first states, of which some may be missing."""

    x: jax.Array
    w: jax.Array
    r: jax.Array
    b: Array | None
    peephole: Array | None
    states: list[Array | None]
    hidden: int
    directions: tuple[bool, ...]  # of each, whether it runs backwards


def _recurrent(gates: int, states: int, defaults: tuple[str, ...], step_of: Callable[[Attributes], Step]):
    """An operator of `gates` gates and `states` states; its outputs are `Y` and the last of each state."""

    def compute(attributes: Attributes, *inputs: Array | None) -> tuple[Array, ...]:
        given = _sequence(attributes, gates, states, inputs)
        count, half, x = len(given.directions), gates * given.hidden, given.x
        chosen = _activations(attributes["activations"] or list(defaults) * count, len(defaults), count)
        b = jnp.zeros((count, 2 * half), x.dtype) if given.b is None else jnp.asarray(given.b)
        nothing = jnp.zeros((count, x.shape[1], given.hidden), x.dtype)
        begin = [nothing if v is None else jnp.asarray(v) for v in given.states]
        found = []
        for d, reverse in enumerate(given.directions):
            peephole = None if given.peephole is None else given.peephole[d]
            weights = _Weights(given.w[d], given.r[d], b[d, :half], b[d, half:], peephole)
            state = tuple(v[d] for v in begin)
            found.append(_over_time(step_of(attributes), weights, chosen[d], state, x, reverse))
        outputs = jnp.stack([every for every, _ in found], 1)  # [steps, directions, n, hidden]
        last = [jnp.stack(parts) for parts in zip(*(state for _, state in found), strict=True)]
        if attributes["layout"]:
            return outputs.transpose(2, 0, 1, 3), *(v.swapaxes(0, 1) for v in last)
        return outputs, *last

    return compute


def _sequence(attributes: Attributes, gates: int, states: int, inputs: tuple[Array | None, ...]) -> _Sequence:
    x, w, r = (jnp.asarray(v) for v in inputs[:3])
    b, lengths, *rest = (*inputs[3:], *[None] * (6 + states - len(inputs)))
    initial, peephole = rest[:states], rest[states]
    reverse = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}.get(attributes["direction"])
    if reverse is None or x.ndim != 3 or r.ndim != 3:
        raise ModelError(f"a sequence {list(x.shape)} in direction {attributes['direction']!r} is not understood")
    if flag(attributes["layout"], "layout"):
        if any(v is not None and v.ndim != 3 for v in initial):
            raise ModelError("an initial state must have 3 dimensions")
        x, initial = x.swapaxes(0, 1), [None if v is None else v.swapaxes(0, 1) for v in initial]
    given = _Sequence(x, w, r, b, peephole, initial, r.shape[-1], reverse)
    _check_shapes(given, gates)
    if attributes["hidden_size"] not in (None, given.hidden) or not len(x):
        raise ModelError(f"hidden_size {attributes['hidden_size']} and {len(x)} steps do not fit")
    if lengths is not None and (known(lengths, "sequence_lens") != len(x)).any():
        raise ModelError(f"sequences shorter than the {len(x)} steps that there are, are not supported")
    if attributes["clip"] is not None or attributes.get("input_forget", 0):
        raise ModelError("clip and input_forget are not supported")
    return given


def _check_shapes(given: _Sequence, gates: int) -> None:
    count, hidden, (_, n, inputs) = len(given.directions), given.hidden, given.x.shape
    wanted = [
        ("W", given.w, (count, gates * hidden, inputs)),
        ("R", given.r, (count, gates * hidden, hidden)),
        ("B", given.b, (count, 2 * gates * hidden)),
        ("P", given.peephole, (count, 3 * hidden)),
        *(("an initial state", v, (count, n, hidden)) for v in given.states),
    ]
    for name, value, shape in wanted:
        if value is not None and value.shape != shape:
            raise ModelError(f"{name} must have the shape {list(shape)}, got {list(value.shape)}")


def _over_time(
    step: Step, w: _Weights, activations: tuple[Activation, ...], state: State, x: jax.Array, reverse: bool
) -> tuple[jax.Array, State]:
    from_input = x @ w.of_input.T + w.input_bias[None, None]

    def one(state: State, entry: jax.Array) -> tuple[State, jax.Array]:
        state = step(w, activations, state, entry)
        return state, state[0]

    last, every = lax.scan(one, state, from_input, reverse=reverse)
    return every, last


def _activations(names: list[str], each: int, count: int) -> list[tuple[Activation, ...]]:
    names = names[: each * count] if set(names) == {"Tanh"} else names  # of an RNN, two are the default
    if len(names) != each * count or not set(names) <= _ACTIVATIONS.keys():
        raise ModelError(f"activations {names} are not supported, only {each * count} of {', '.join(_ACTIVATIONS)}")
    chosen = [_ACTIVATIONS[name] for name in names]
    return [tuple(chosen[i : i + each]) for i in range(0, len(chosen), each)]


OPERATIONS: Operators = {
    "GRU": _recurrent(
        3, 1, ("Sigmoid", "Tanh"), lambda a: _gru_step(flag(a["linear_before_reset"], "linear_before_reset"))
    ),
    "LSTM": _recurrent(4, 2, ("Sigmoid", "Tanh", "Tanh"), lambda attributes: _lstm_step),
    "RNN": _recurrent(1, 1, ("Tanh",), lambda attributes: _rnn_step),
}
