# vmla-run and vmla-serve on a CPU. Was never built on the machine that the project is developed on, which has no Docker
# engine; it is linted with hadolint. Linux only: `docker run --user "$(id -u)"` writes as you.
#
# TORCH_INDEX is the index of PyTorch's CPU builds, as its install page names it:
#   docker build -f docker/cpu.Dockerfile --build-arg TORCH_INDEX=... -t videomla:cpu .
#   docker run --rm -v "$PWD:/videos" videomla:cpu vmla-run --prompt "a red star bouncing on a navy background" -o star.mp4
FROM python:3.12-slim

# The CPU's own build of torch comes first: the default one brings gigabytes of CUDA libraries along.
ARG TORCH_INDEX
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.11,<2.14"

COPY . /source
RUN pip install --no-cache-dir "/source[serve,png]" && rm -rf /source

RUN useradd --create-home --uid 1000 videomla && install --directory --owner videomla /videos
USER 1000
WORKDIR /videos

CMD ["vmla-run", "--help"]
