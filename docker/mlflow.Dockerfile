# The MLflow server of compose.yaml. The version is that of the clients, in constraints.txt.
FROM python:3.11-slim-bookworm

RUN pip install --no-cache-dir mlflow==3.17.0 psycopg2-binary==2.9.13

# A volume that is mounted on a folder of the image starts with its owner.
RUN useradd --uid 10001 --create-home mlflow && install --directory --owner=10001 /mlartifacts
USER 10001
WORKDIR /home/mlflow
EXPOSE 5000
