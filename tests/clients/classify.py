"""Classifies texts (a JSON list, from stdin) with Optimum, one at a time, and prints the probabilities:

python classify.py <folder of an export> <file of a graph below it>
"""

import json
import sys
from pathlib import Path

from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer

folder, graph = sys.argv[1], Path(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = ORTModelForSequenceClassification.from_pretrained(folder, subfolder=str(graph.parent), file_name=graph.name)
answers = []
for text in json.load(sys.stdin):
    (shares,) = model(**tokenizer([text], truncation=True, return_tensors="pt")).logits.softmax(-1).tolist()
    answers.append({model.config.id2label[at]: share for at, share in enumerate(shares)})
print(json.dumps(answers))
