# vmla-run and vmla-serve on an NVIDIA GPU. Was never built on the machine that the project is developed on, which has no
# Docker engine; it is linted with hadolint. The host needs NVIDIA's driver and its container toolkit.
#
#   docker build -f docker/cuda.Dockerfile -t videomla:cuda .
#   docker run --rm --gpus all -v "$PWD:/videos" videomla:cuda vmla-run --prompt "a red star" -o star.mp4
FROM python:3.12-slim

# The default torch for Linux brings CUDA's libraries with it; Triton's launcher and the compiled blocks need a C compiler.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/*

COPY . /source
RUN pip install --no-cache-dir "/source[serve,png,gpu,wan]" && rm -rf /source

RUN useradd --create-home --uid 1000 videomla && install --directory --owner videomla /videos
USER 1000
WORKDIR /videos

CMD ["vmla-run", "--help"]
