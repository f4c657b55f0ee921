# The live server on a CPU:
#   docker build -t videomla . && docker run -p 8000:8000 -v "$PWD/keys.txt:/run/secrets/keys:ro" videomla
# Neither this file nor Dockerfile.cuda has been built where the project is developed, which has no container engine.
FROM python:3.12-slim

# The index of PyTorch's CPU builds, as its install page names it. Without it, pip takes the build for CUDA.
ARG TORCH_INDEX=""

COPY . /src
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "/src[serve,png]" \
    && rm -rf /src \
    && useradd --create-home vmla

USER vmla
WORKDIR /home/vmla
EXPOSE 8000
# Others can reach it here, so it wants a file of keys; --no-auth in place of the last two words lets anyone in.
ENTRYPOINT ["vmla-serve", "--host", "0.0.0.0", "--store", "streams"]
CMD ["--api-key", "/run/secrets/keys"]
