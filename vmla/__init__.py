"""VideoMLA: causal video diffusion whose key-value cache is one shared latent and one rotary key."""

__version__ = "0.1.0"
