# The MLflow server of compose.yaml. The versions are those of constraints.txt, where the clients have theirs.
FROM python:3.11-slim-bookworm

RUN pip install --no-cache-dir mlflow==3.17.0 psycopg2-binary==2.9.13 flask-wtf==1.3.0

COPY mlflow_auth.ini /etc/mlflow_auth.ini

# A volume that is mounted on a folder of the image starts with its owner.
RUN useradd --uid 10001 --create-home mlflow && install --directory --owner=10001 /mlartifacts
USER 10001
WORKDIR /home/mlflow
EXPOSE 5000
