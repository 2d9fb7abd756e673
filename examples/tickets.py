"""Labels of texts are learned from one table after the other. The labels are remembered, and no text is kept.

    python examples/tickets.py

The tables are made from requests that a small grammar of the package has written. Hashed words need no download; with
the extra `text`, an encoder of sentences can take their place: backbone="sentence-transformers/all-MiniLM-L6-v2".
"""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

from lamella import Learner, load_source
from lamella.data.texts import TextSet

requests = load_source("requests")
assert isinstance(requests.train, TextSet)
months = {"october": range(0, 8), "november": range(8, 15)}  # which labels come in which month

learner = Learner.create(backbone="hashed-words")
with TemporaryDirectory() as folder:
    for month, labels in months.items():
        table = Path(folder, f"{month}.csv")
        with table.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for text, label in zip(requests.train.texts, requests.train.labels.tolist(), strict=True):
                if label in labels:
                    rows.writerow([text, requests.class_names[label]])
        record = learner.learn_from(table)
        print(f"{record.name}: {len(record.classes)} labels, {len(learner.class_names)} in all")

asked = "good morning, do I need a visa for Oslo"
guess = learner.predict([asked])[0]
print(f"{asked}: {guess.classes[0]}, {guess.confidences[0]:.0%} sure")

names = [requests.class_names[label] for label in requests.test.labels.tolist()]
right = [g.classes[0] == name for g, name in zip(learner.predict(requests.test), names, strict=True)]
print(f"all fifteen labels: {sum(right)} of {len(right)} right")
