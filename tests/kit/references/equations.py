"""The whole denoiser as equations over all frames at once, in float64, from a model's weights alone.

Nothing of `vmla`'s forward, rotation or attention is used: positions turn complex numbers, masks
come from the definition of the window, every product is written out. Slow, and meant to be.
"""

import torch
from kit.tiny.frames import frames_of


def window_of(config, number):
    """Absolute frames that chunk `number` attends to before itself, each with its local position.

    And the positions of its own frames. Absolute until the window is full, then closed up behind
    the sink (arXiv 2605.30351, D.5).
    """
    own, slots = frames_of(config, number), config.sink + config.history
    made = own[0]
    gone = max(0, made - slots)
    sink = [(frame, frame) for frame in range(min(config.sink, made))]
    recent = [(frame, frame - gone) for frame in range(max(config.sink, made - config.history), made)]
    return dict(sink + recent), [frame - gone for frame in own]


def remembered_of(config, number, numbers):
    """`window_of` where only the chunks in `numbers` were ever made, and a jump forgets all but the sink."""
    before, own = window_of(config, number)
    first = number
    while first - 1 in numbers:
        first -= 1
    made = {frame for chunk in numbers for frame in frames_of(config, chunk)}
    kept = (f for f in before if f in made and (f < config.sink or f >= frames_of(config, first)[0]))
    return {frame: before[frame] for frame in kept}, own


class Equations:
    """One model's forward in float64."""

    def __init__(self, model):
        self.config = model.config
        self.weights = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}

    def run(self, clean, noisy, noisy_timestep, text, numbers=None):
        """All chunks of a teacher-forced video in one masked pass over [clean | noisy] tokens.

        Args:
            clean, noisy: [B, z, frames, h, w]. Clean frames have timestep 0 and attend to the clean
                frames of their window; noisy ones to the same and to the noisy ones of their chunk.
            noisy_timestep: [B, frames].
            text: [B, tokens, text width].
            numbers: the chunks that the frames belong to, 0, 1, 2 and so on if not given.

        Returns:
            Velocities of both halves [B, z, 2 * frames, h, w], and what the clean tokens leave in
            the cache [L, B, frames, P, E].
        """
        latents = torch.cat([clean, noisy], dim=2).double()
        timestep = torch.cat([torch.zeros_like(noisy_timestep), noisy_timestep], dim=1).double()
        frames = clean.shape[2]
        rest = frames - len(frames_of(self.config, 0))
        self.numbers = list(numbers or range(1 + rest // self.config.chunk))
        embedding = self.embed_time(timestep)  # [B, 2 frames, D]
        modulation = self.linear("condition_embedder.time_proj", silu(embedding)).unflatten(-1, (6, -1))
        text = self.mlp("condition_embedder.text_embedder.linear_{}", text.double())
        x = self.patches(latents)  # [B, 2 frames, P, D]
        left = []
        for layer in range(self.config.num_layers):
            x, entries = self.block(f"blocks.{layer}.", x, modulation, text, frames)
            left.append(entries)
        shift, scale = (embedding + self.weights["scale_shift_table"][0, i] for i in range(2))
        x = normalised(x, self.config.eps) * (1 + scale[:, :, None]) + shift[:, :, None]
        return self.pictures(self.linear("proj_out", x)), torch.stack(left)

    def block(self, name, x, modulation, text, frames):
        m = (modulation + self.weights[name + "scale_shift_table"])[:, :, :, None].unbind(2)
        eps = self.config.eps
        attend = self.latent_attention if self.config.layout == "mla" else self.head_attention
        out, entries = attend(name + "attn1.", normalised(x, eps) * (1 + m[1]) + m[0], frames)
        x = x + m[2] * out
        y = normalised(x, eps) * self.weights[name + "norm2.weight"] + self.weights[name + "norm2.bias"]
        x = x + self.text_attention(name + "attn2.", y, text)
        y = normalised(x, eps) * (1 + m[4]) + m[3]
        return x + m[5] * self.linear(name + "ffn.down", gelu(self.linear(name + "ffn.up", y))), entries

    def latent_attention(self, name, x, frames):
        """Equations of arXiv 2605.30351, 3.1; x [B, 2 frames, P, D]."""
        latent = self.rms(name + "norm_kv", self.linear(name + "down_kv", x))
        positional = self.linear(name + "rotary_k", x)
        query = self.rms(name + "norm_q", self.linear(name + "down_q", x))
        keys, values = (self.heads(self.linear(name + part, latent)) for part in ("up_k", "up_v"))
        contents = self.heads(self.linear(name + "up_q", query))
        turning = self.heads(self.linear(name + "rotary_q", query))
        shared = positional[:, :, :, None].expand(*keys.shape[:4], -1)
        out = self.attention(contents, keys, turning, shared, values, frames)
        entries = torch.cat([latent, positional], dim=-1)[:, :frames]
        return self.linear(name + "to_out", out), entries

    def head_attention(self, name, x, frames):
        """Wan's: every channel of a head turns; x [B, 2 frames, P, D]."""
        query, key = (self.rms(name + f"norm_{c}", self.linear(name + f"to_{c}", x)) for c in "qk")
        value = self.linear(name + "to_v", x)
        q, k, v = self.heads(query), self.heads(key), self.heads(value)
        out = self.attention(q[..., :0], k[..., :0], q, k, v, frames)
        return self.linear(name + "to_out", out), torch.cat([key, value], dim=-1)[:, :frames]

    def attention(self, contents, keys, turning, turned, values, frames):
        """Chunk by chunk, for each its own mask and positions. All [B, 2 frames, P, N, width]."""
        out = []
        width = contents.shape[-1] + turning.shape[-1]
        made = [frame for number in self.numbers for frame in frames_of(self.config, number)]
        place = {frame: at for at, frame in enumerate(made)}
        for half in range(2):
            for number in self.numbers:
                before, positions = remembered_of(self.config, number, self.numbers)
                own = [half * frames + place[frame] for frame in frames_of(self.config, number)]
                seen = [place[frame] for frame in before] + own
                at_query = self.turn(turning[:, own], positions)
                at_key = self.turn(turned[:, seen], [*before.values(), *positions])
                scores = torch.einsum("bqpnd,bkrnd->bnqpkr", contents[:, own], keys[:, seen])
                scores = scores + torch.einsum("bqpnd,bkrnd->bnqpkr", at_query, at_key)
                weights = (scores * width**-0.5).flatten(4).softmax(-1).unflatten(-1, scores.shape[4:])
                out.append(torch.einsum("bnqpkr,bkrnd->bqpnd", weights, values[:, seen]))
        return torch.cat(out, dim=1).flatten(-2)

    def turn(self, x, positions):
        """Rotate x [B, frames, P, N, width] as complex numbers; frame i lies at positions[i]."""
        down, across = (
            self.config.sample_height // self.config.patch_size,
            self.config.sample_width // self.config.patch_size,
        )
        time, row, column = (rates.double() for rates in self.rates(x.shape[-1]))
        angles = [
            torch.cat([t * time, r * row, c * column])
            for t in positions for r in range(down) for c in range(across)
        ]  # fmt: skip
        turns = torch.polar(torch.ones(()).double(), torch.stack(angles))
        shape = (len(positions), down * across, 1, -1)
        numbers = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
        return torch.view_as_real(numbers * turns.reshape(shape)).flatten(-2)

    def rates(self, width):
        """Radians per position for time, height and width: the fastest of Wan's own tables."""
        head = self.config.inner_dim // self.config.num_attention_heads
        spatial = head // 6 * 2
        axes = (head - 2 * spatial, spatial, spatial)
        tables = [10000.0 ** (-torch.arange(0, axis, 2).double() / axis) for axis in axes]
        pairs = width // 2
        kept = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
        return [table[:n] for table, n in zip(tables, kept, strict=True)] if width < head else tables

    def text_attention(self, name, x, text):
        query = self.heads(self.rms(name + "norm_q", self.linear(name + "to_q", x)))
        keys = self.heads(self.rms(name + "norm_k", self.linear(name + "to_k", text)))
        values = self.heads(self.linear(name + "to_v", text))
        scores = torch.einsum("bfpnd,btnd->bnfpt", query, keys) * query.shape[-1] ** -0.5
        out = torch.einsum("bnfpt,btnd->bfpnd", scores.softmax(-1), values)
        return self.linear(name + "to_out", out.flatten(-2))

    def embed_time(self, timestep):
        half = self.config.freq_dim // 2
        rates = 10000.0 ** (-torch.arange(half).double() / half)
        angles = timestep[..., None] * rates
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        hidden = silu(self.linear("condition_embedder.time_embedder.linear_1", waves))
        return self.linear("condition_embedder.time_embedder.linear_2", hidden)

    def patches(self, latents):
        """The patch embedding as Wan's convolution: [B, z, F, h, w] to [B, F, P, D]."""
        patch, weight = self.config.patch_size, self.weights["patch_embedding.weight"]
        kernel = weight.reshape(self.config.inner_dim, self.config.in_channels, 1, patch, patch)
        bias = self.weights["patch_embedding.bias"]
        cells = torch.nn.functional.conv3d(latents, kernel, bias, stride=(1, patch, patch))
        return cells.flatten(3).permute(0, 2, 3, 1) + self.weights.get("position_embedding", 0)

    def pictures(self, tokens):
        """[B, F, P, patch^2 z] to [B, z, F, h, w], cell by cell."""
        patch, z = self.config.patch_size, self.config.in_channels
        down, across = self.config.sample_height // patch, self.config.sample_width // patch
        batch, frames = tokens.shape[:2]
        picture = tokens.new_zeros(batch, z, frames, down * patch, across * patch)
        for row in range(down):
            for column in range(across):
                for cell in range(patch**2):
                    y, x = row * patch + cell // patch, column * patch + cell % patch
                    values = tokens[:, :, row * across + column, cell * z : (cell + 1) * z]
                    picture[:, :, :, y, x] = values.transpose(1, 2)
        return picture

    def linear(self, name, x):
        return x @ self.weights[name + ".weight"].T + self.weights.get(name + ".bias", 0)

    def mlp(self, name, x):
        return self.linear(name.format(2), gelu(self.linear(name.format(1), x)))

    def rms(self, name, x):
        size = (x.square().mean(-1, keepdim=True) + self.config.eps).sqrt()
        return x / size * self.weights[name + ".weight"]

    def heads(self, x):
        return x.unflatten(-1, (self.config.num_attention_heads, -1))


def normalised(x, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def silu(x):
    return x / (1 + (-x).exp())


def gelu(x):
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
