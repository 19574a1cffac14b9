FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /srv/litmus

# The program is root's and the process is not: it can write its home (downloaded models) and /tmp, nothing else.
RUN useradd --create-home --uid 10001 litmus

# The engine compiles its kernels for the processor it runs on, once, into its home; without a compiler it leaves them to oneDNN.
# No version: any gcc of this Debian will do, and its point releases replace one another.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

# First what changes least. A CPU-only or another build of torch: --build-arg PIP_EXTRA_INDEX_URL=<an index that has it>.
ARG PIP_EXTRA_INDEX_URL
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt

COPY LICENSE ./
# Weights that were just trained are readable by their owner only.
COPY --chmod=755 models/ models/
COPY app/ app/
COPY serve/ serve/
COPY ui/ ui/
USER 10001

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('LITMUS_SERVER__PORT', '8000')}/ready\", timeout=4)"]

CMD ["python", "-m", "serve", "--server.host", "0.0.0.0"]
