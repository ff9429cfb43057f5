# docker build --tag lightgpt2 .
# docker run --rm --volume "$PWD:/work" --user "$(id -u):$(id -g)" lightgpt2 fit --config distill.yaml     (GPUs: --gpus all)
FROM python:3.11-bookworm AS build
WORKDIR /opt/lightgpt2
COPY . .
# As `make demo` sets it up, hashes verified; then the package itself in the place of a link to this folder.
RUN make .venv/.installed && .venv/bin/python -m pip install --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
COPY --from=build /opt/lightgpt2/.venv /opt/lightgpt2/.venv
ENV PATH=/opt/lightgpt2/.venv/bin:$PATH HOME=/tmp
WORKDIR /work
ENTRYPOINT ["lightgpt2"]
CMD ["--help"]
