# An image with mmm, its recipes and the optional readers of JPEG files and videos:
#
#     docker build -t mmm .
#     docker run --gpus all --ipc host -v /data:/data -v "$PWD/runs:/home/mmm/runs" mmm pretrain image_mae --data.source /data/imagenet
#
# For several GPUs: docker run ... --entrypoint accelerate mmm launch -m tasks pretrain image_mae ...
FROM python:3.12-slim

# the compiler builds the optional resize kernel
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

WORKDIR /build
COPY pyproject.toml setup.py README.md LICENSE ./
COPY mmm mmm
COPY tasks tasks
COPY recipes recipes
RUN pip install --no-cache-dir '.[fast,video]' && rm -rf /build

WORKDIR /home/mmm
ENTRYPOINT ["mmm"]
CMD ["--help"]
