"""Make what stands for your own: tickets.csv, and small-bert/, a BERT of random weights with its tokenizer."""

import csv
import random
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = {
    "billing": "invoice charge refund card payment price receipt tax",
    "access": "password login account locked email code reset user",
    "fault": "crash error slow freeze broken screen bug restart",
}
FILLER = "please help me with the a my again since today it is not and i was"
ROWS = 400


def tickets(draw: random.Random) -> list[tuple[str, str]]:
    """(text, team): two words that tell the team among five that do not."""
    rows = []
    for _ in range(ROWS):
        team = draw.choice(sorted(WORDS))
        words = draw.sample(WORDS[team].split(), 2) + draw.choices(FILLER.split(), k=5)
        draw.shuffle(words)
        rows.append((" ".join(words), team))
    return rows


def main() -> None:
    with Path("tickets.csv").open("w", encoding="utf8", newline="") as file:
        csv.writer(file).writerows([("message", "team"), *tickets(random.Random(0))])
    folder = Path("small-bert")
    folder.mkdir(exist_ok=True)
    words = sorted({*FILLER.split(), *(word for words in WORDS.values() for word in words.split())})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **shape)).save_pretrained(folder)


if __name__ == "__main__":
    main()
