"""The form of the published reward servers: Flask, pickle both ways, a gunicorn sync worker, which
scores one request at a time. Only for comparison, on loopback: unpickling runs what callers send.

`gunicorn --worker-class sync flask_server:app`; NOOP_SLEEP_MS: time that a batch takes.
"""

from __future__ import annotations

import os
import pickle
import time

import numpy as np
from flask import Flask, Response, request

SLEEP_S = float(os.environ.get("NOOP_SLEEP_MS", "0")) / 1000

app = Flask(__name__)


@app.post("/")
def score() -> Response:
    message = pickle.loads(request.get_data())
    images = [np.asarray(image) for image in message["images"]]
    time.sleep(SLEEP_S)
    scores = [float(image[0, 0, 0]) for image in images]
    return Response(pickle.dumps({"scores": scores}), mimetype="application/octet-stream")


@app.get("/health")
def health() -> str:
    return "ok"
