"""TAEHV's architecture with weights drawn at random, whose pictures are neither black nor white."""

from kit.tiny.models import draw, randomise

from vmla.vae.taehv import TAEHV_CONFIGS, Taehv


def random_taehv(name="debug", seed=0):
    """The codec of architecture `name`; its frames lie about 0.5 with a deviation of 0.2."""
    codec = randomise(Taehv(TAEHV_CONFIGS[name]), seed)
    last = codec.decoder[-1]
    x, _ = codec.decoder.run(draw(4, codec.latent_channels, 8, 8, seed=seed), 1, None)
    last.weight *= 0.2 / x.std()
    last.bias.fill_(0.5)
    return codec
