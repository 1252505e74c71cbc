# The environment of requirements.lock and a checkout, for a CPU (the default) or for NVIDIA GPUs:
#
#   docker build -t longtail --build-arg COMMIT="$(git describe --always --dirty --abbrev=12 --exclude='*')" .
#   docker build -t longtail-cuda --target cuda --build-arg COMMIT=... .
#   docker run --rm --gpus all -v "$PWD/data:/longtail/data" -v "$PWD/papers:/longtail/papers" longtail-cuda campaign --minutes 25
#
# CUDA's libraries are packages of the lock, so both need the same base image and no CUDA image; the GPU's driver is the host's.
# The folders that are mounted keep what is trained: the user's files stay the user's with `--user "$(id -u):$(id -g)"`.
FROM python:3.12-slim-bookworm AS environment
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /longtail
COPY Makefile requirements.lock ./
RUN make setup

FROM environment AS checkout
COPY . .
ARG COMMIT=unknown
ENV LONGTAIL_COMMIT=$COMMIT \
    PATH=/longtail/.venv/bin:$PATH \
    HOME=/tmp
RUN mkdir -p .work && chmod 1777 .work data && python -m papers prepare digits
ENTRYPOINT ["python", "-m", "papers"]
CMD ["doctor"]

FROM checkout AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM checkout AS cpu
ENV CUDA_VISIBLE_DEVICES=""
