# SPDX-License-Identifier: Apache-2.0
"""The decoder of every family as a list of calls: embedding, blocks of attention and feed-forward network, head.

What differs between families is in their description (`models.Family`, `DecoderConfig`):

    Llama, Mistral, Qwen   norm inside the pass of q, k, v and of gate and up; residuals inside o and down
    Gemma                  a norm behind o and behind down, which adds the residual
    OPT                    layer norms before the passes, relu between them, learned positions

Every value between calls is 16-bit rows in one buffer (`Buffers`); nothing here waits for the device, so all of it may
be captured into a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref
from dataclasses import dataclass
from typing import Any

from ...formats.graph import block_output, linear_output
from .binding import CAttention, CCache, CType, Input, check
from .device import Device, aligned
from .number_types import C_TYPES, SPELLING
from .passes import Group, Rows, Scratch
from .table_types import CEmbedding, CNormalization, COutput, Norm
from .weights import Weights

__all__ = ["WATCHED_ROWS", "Buffers", "Decoder", "Lanes", "Watch"]

#: Most rows of a pass whose inner values are watched.
WATCHED_ROWS = 64

#: Told of each inner value where it has just been computed: name, rows, columns. Blocks' outputs have the residual's
#: factor.
Watch = Callable[[str, Rows, int], None]


@dataclass(frozen=True)
class Lanes:
    """The sequences of a call, in device memory.

    Attributes:
        sequences: how many.
        tokens: int64 [rows], what is embedded.
        positions: int64 [sequences], tokens that each one's cache held before; negative where it is idle.
        starts: int32 [sequences + 1], rows of their tokens; 0 for one row each.
        page_table: int32 [sequences][stride].
        stride: pages of a sequence at most.
    """

    sequences: int
    tokens: int
    positions: int
    starts: int
    page_table: int
    stride: int


@dataclass(frozen=True)
class Buffers:
    """Activations of up to `rows` rows, and scratch memory.

    Attributes:
        rows: most rows.
        hidden: residual stream [rows][hidden_size].
        spare: the same once more, for norms that stand alone; of `spare_rows` rows only.
        wide: [rows][wide width], outputs of a block's two grouped passes, one after the other; behind q, k and v lies
            what attention makes of them.
        scratch: of the linear layers.
        attention: of attention; zero before its first use.
        head: of the head.
    """

    rows: int
    hidden: Rows
    spare: Rows
    wide: Rows
    scratch: Scratch
    attention: Scratch
    head: Scratch


@dataclass(frozen=True)
class _Norm:
    kind: Norm
    weight: int
    bias: int | None
    eps: float


@dataclass(frozen=True)
class _Block:
    """One block; `attention_norm` and `feed_norm` where they are no part of the pass behind them."""

    name: str
    qkv: Group
    output: Group
    feed: Group
    down: Group
    attention_norm: _Norm | None
    feed_norm: _Norm | None
    attention_out_norm: _Norm | None
    feed_out_norm: _Norm | None
    head_norms: tuple[int, int] | None
    frequencies: int | None
    window: int


class Decoder:
    """A model's calls.

    Args:
        device: where it runs.
        weights: on the device.
        context: most tokens of a sequence; a window that is no shorter is none.
    """

    def __init__(self, device: Device, weights: Weights, context: int) -> None:
        self._device, self._weights = device, weights
        config = self.config = weights.config
        self.dtype = CType(C_TYPES[SPELLING[weights.dtype]])
        family = config.structure
        self._residual_eps = config.norm_eps * weights.residual_scale**2
        self._norm_kind = Norm.LAYER if family.norm == "layer" else Norm.RMS
        self._blocks = [self._block(block, context) for block in range(config.num_layers)]
        self._final_norm = self._norm(family.final_norm)
        self._queries = config.num_heads * config.head_dim
        self._keys = config.num_kv_heads * config.head_dim

    def _norm(self, module: str, *, of_residual: bool = True) -> _Norm:
        weight, bias = self._weights.norm(module)
        return _Norm(self._norm_kind, weight, bias, self._residual_eps if of_residual else self.config.norm_eps)

    def _block(self, block: int, context: int) -> _Block:
        config, family = self.config, self.config.structure
        name = f"{family.blocks}.{block}"
        fused = self._norm_kind == Norm.RMS

        def group(parts: tuple[str, ...], norm: str = "", input: Input = Input.PLAIN) -> Group:
            layers = [self._weights.layers[f"{name}.{part}"] for part in parts]
            weight = None
            if norm and fused:
                weight, input = self._weights.norm(f"{name}.{norm}")[0], Input.RMS_NORM
            eps = self._residual_eps if weight is not None else 0.0
            return Group(layers, self.dtype, input=input, norm_weight=weight, norm_eps=eps)

        def alone(norm: str, *, of_residual: bool = True) -> _Norm | None:
            return self._norm(f"{name}.{norm}", of_residual=of_residual) if norm else None

        gates = {"silu": Input.SILU, "gelu_tanh": Input.GELU}
        heads = None
        if family.head_norms:
            query, key = (self._weights.norm(f"{name}.self_attn.{part}_norm")[0] for part in "qk")
            heads = (query, key)
        rotary = config.rotary_of(block)
        return _Block(
            name=name,
            qkv=group((family.query, family.key, family.value), family.attention_norm),
            output=group((family.output,)),
            feed=group((family.gate, family.up) if family.gate else (family.up,), family.feed_norm),
            down=group((family.down,), input=gates[config.activation] if family.gate else Input.PLAIN),
            attention_norm=None if fused else alone(family.attention_norm),
            feed_norm=None if fused else alone(family.feed_norm),
            attention_out_norm=alone(family.attention_out_norm, of_residual=False),
            feed_out_norm=alone(family.feed_out_norm, of_residual=False),
            head_norms=heads,
            frequencies=None if rotary is None else self._weights.frequencies[rotary],
            window=config.window_of(block, context),
        )

    @property
    def residual_scale(self) -> float:
        """See `weights.residual_scale`."""
        return self._weights.residual_scale

    @property
    def library(self) -> Any:
        """The loaded library."""
        return self._device.library

    @property
    def wide_width(self) -> int:
        """Columns of `Buffers.wide`."""
        return max(max(block.qkv.width + self._queries, block.feed.width) for block in self._blocks)

    def spare_rows(self, rows: int) -> int:
        """Rows that `Buffers.spare` needs for passes of `rows` rows."""
        family = self.config.structure
        alone = self._norm_kind == Norm.LAYER or family.attention_out_norm or family.feed_out_norm
        return rows if alone else min(rows, WATCHED_ROWS)

    def scratch_bytes(self, rows: int) -> int:
        """Scratch memory of the linear layers for 1 to `rows` rows."""
        every = [
            group.scratch_bytes(self._device, rows)
            for block in self._blocks[:1]
            for group in (block.qkv, block.output, block.feed, block.down)
        ]
        # Ranks differ from block to block: the sizes of the others are asked for once each.
        for block in self._blocks[1:]:
            every += [group.scratch_bytes(self._device, rows) for group in (block.qkv, block.feed, block.down)]
        return aligned(max(every))

    def attention_bytes(self, sequences: int, tokens: int, cache: CCache) -> int:
        """Scratch memory of attention."""
        described = self._attention(0, sequences, cache)
        described.max_tokens = tokens
        described.q_stride = described.y_stride = self._queries
        described.k_stride = described.v_stride = self._keys
        return aligned(int(self._device.library.nq_cuda_attend_workspace_bytes(byref(described))))

    def head_bytes(self, rows: int) -> int:
        """Scratch memory of the head for 1 to `rows` rows."""
        described = self._output(rows)
        return aligned(int(self._device.library.nq_cuda_head_workspace_bytes(byref(described))))

    def run(
        self,
        rows: int,
        lanes: Lanes,
        *,
        buffers: Buffers,
        caches: list[CCache],
        tokens: int,
        watch: Watch | None = None,
    ) -> None:
        """Enqueue everything up to the last block's output, which `Buffers.hidden` then holds.

        Args:
            rows: new tokens of all sequences together.
            lanes: the sequences.
            buffers: activations.
            caches: one of each block; page table and stride are those of `lanes`.
            tokens: new tokens of one sequence at most.
            watch: told of inner values; the calls are not those of a captured graph then.
        """
        self._embed(rows, lanes, buffers)
        for index, block in enumerate(self._blocks):
            self._attend(block, rows, lanes, buffers, cache=caches[index], tokens=tokens, watch=watch)
            self._feed(block, rows, buffers, watch)
            if watch is not None:
                watch(block_output(index), buffers.hidden, self.config.hidden_size)

    def head(self, rows: int, buffers: Buffers, *, logits: int, ends: int = 0) -> None:
        """Enqueue final norm and head.

        Args:
            rows: how many rows get logits.
            buffers: after `run`.
            logits: float32 [rows][vocab_size].
            ends: int32 [rows], one more than the rows of `Buffers.hidden`; 0 for the first ones in order.
        """
        described = self._output(rows)
        described.x, described.x_stride = buffers.hidden.address, buffers.hidden.stride
        described.ends = ends or None
        described.logits, described.logits_stride = logits, self.config.vocab_size
        described.workspace, described.workspace_bytes = buffers.head.address, buffers.head.size
        check(self._device.library.nq_cuda_head(byref(described), self._device.stream), f"the head of {rows} rows")

    def _output(self, rows: int) -> COutput:
        norm = self._final_norm
        return COutput(
            table=self._weights.head,
            x_type=self.dtype,
            norm=norm.kind,
            norm_eps=norm.eps,
            soft_cap=self.config.logit_cap or 0.0,
            norm_weight=norm.weight,
            norm_bias=norm.bias,
            rows=rows,
            x_stride=self.config.hidden_size,
            logits_stride=self.config.vocab_size,
        )

    def _embed(self, rows: int, lanes: Lanes, buffers: Buffers) -> None:
        learned, count = self._weights.learned
        described = CEmbedding(
            table=self._weights.embedding,
            type=self.dtype,
            multiplier=self.config.embedding_scale * self._weights.residual_scale,
            count=rows,
            tokens=lanes.tokens,
            out=buffers.hidden.address,
            out_stride=buffers.hidden.stride,
            learned=learned or None,
            learned_rows=count,
            learned_offset=self.config.structure.position_offset,
            sequences=lanes.sequences,
            positions=lanes.positions,
            starts=lanes.starts or None,
        )
        check(self._device.library.nq_cuda_embed(byref(described), self._device.stream), "the embedding")

    def _attend(
        self,
        block: _Block,
        rows: int,
        lanes: Lanes,
        buffers: Buffers,
        *,
        cache: CCache,
        tokens: int,
        watch: Watch | None,
    ) -> None:
        device, family = self._device, self.config.structure
        x = self._normed(block.attention_norm, rows, buffers)
        block.qkv(device, rows, x, y=buffers.wide, scratch=buffers.scratch)
        if watch is not None:
            for part, offset, width in zip(
                (family.query, family.key, family.value), block.qkv.offsets, block.qkv.widths, strict=True
            ):
                watch(linear_output(f"{block.name}.{part}"), buffers.wide.columns(offset), width)
        described = self._attention(block.window, lanes.sequences, cache, block)
        query, key, value = (buffers.wide.columns(offset) for offset in block.qkv.offsets)
        described.max_tokens = tokens
        described.positions, described.starts = lanes.positions, lanes.starts or None
        described.cache.page_table, described.cache.table_stride = lanes.page_table, lanes.stride
        described.q, described.q_stride = query.address, query.stride
        described.k, described.k_stride = key.address, key.stride
        described.v, described.v_stride = value.address, value.stride
        attended = buffers.wide.columns(block.qkv.width)
        described.y, described.y_stride = attended.address, attended.stride
        described.workspace, described.workspace_bytes = buffers.attention.address, buffers.attention.size
        library, stream = device.library, device.stream
        if tokens == 1 and not lanes.starts:
            check(library.nq_cuda_attend(byref(described), stream), "attention")
        else:
            check(library.nq_cuda_rotary_append(byref(described), stream), "rotary embedding")
            described.q, described.q_stride = attended.address, attended.stride
            check(library.nq_cuda_attend_many(byref(described), stream), "attention of many tokens")
        self._project(block.output, family.output, block, rows, attended, buffers=buffers, watch=watch)

    def _feed(self, block: _Block, rows: int, buffers: Buffers, watch: Watch | None) -> None:
        device, family = self._device, self.config.structure
        x = self._normed(block.feed_norm, rows, buffers)
        block.feed(device, rows, x, y=buffers.wide, scratch=buffers.scratch)
        if watch is not None:
            parts = (family.gate, family.up) if family.gate else (family.up,)
            for part, offset, width in zip(parts, block.feed.offsets, block.feed.widths, strict=True):
                watch(linear_output(f"{block.name}.{part}"), buffers.wide.columns(offset), width)
        if not family.gate:
            self._relu(rows, buffers.wide)
        self._project(block.down, family.down, block, rows, buffers.wide, buffers=buffers, watch=watch)

    def _normed(self, norm: _Norm | None, rows: int, buffers: Buffers) -> Rows:
        """The residual stream, normed where that is no part of the pass that follows."""
        if norm is None:
            return buffers.hidden
        self._apply(norm, rows, buffers.hidden, out=buffers.spare)
        return buffers.spare

    def _project(
        self, group: Group, part: str, block: _Block, rows: int, x: Rows, *, buffers: Buffers, watch: Watch | None
    ) -> None:
        """A half's last layer, its norm where it has one, and the sum with the residual."""
        family, hidden, spare = self.config.structure, buffers.hidden, buffers.spare
        norm = block.attention_out_norm if part == family.output else block.feed_out_norm
        if norm is not None or watch is not None:
            group(self._device, rows, x, y=spare, scratch=buffers.scratch)
            if watch is not None:
                watch(linear_output(f"{block.name}.{part}"), spare, self.config.hidden_size)
        if norm is None:
            group(self._device, rows, x, y=hidden, scratch=buffers.scratch, residual=hidden)
        else:
            self._apply(norm, rows, spare, out=hidden, residual=hidden)

    def _apply(self, norm: _Norm, rows: int, x: Rows, *, out: Rows, residual: Rows | None = None) -> None:
        described = CNormalization(
            norm=norm.kind,
            type=self.dtype,
            rows=rows,
            columns=self.config.hidden_size,
            eps=norm.eps,
            weight=norm.weight,
            bias=norm.bias,
            x=x.address,
            residual=None if residual is None else residual.address,
            out=out.address,
            x_stride=x.stride,
            residual_stride=0 if residual is None else residual.stride,
            out_stride=out.stride,
        )
        check(self._device.library.nq_cuda_norm(byref(described), self._device.stream), "a norm")

    def _relu(self, rows: int, x: Rows) -> None:
        arguments = (self.dtype, x.address, rows * x.stride, x.address, self._device.stream)
        check(self._device.library.nq_cuda_activate(*arguments), "relu")

    def _attention(self, window: int, sequences: int, cache: CCache, block: _Block | None = None) -> CAttention:
        config = self.config
        norms = (None, None) if block is None or block.head_norms is None else block.head_norms
        return CAttention(
            type=self.dtype,
            sequences=sequences,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            window=window,
            soft_cap=config.attention_cap or 0.0,
            scale=config.attention_scale,
            norm_eps=config.norm_eps,
            q_norm=norms[0],
            k_norm=norms[1],
            frequencies=None if block is None else block.frequencies,
            cache=cache,
        )
