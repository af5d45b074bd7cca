"""TRL's SFTTrainer as one of the loops: a script that imports nothing of ours.

`python peer_trl.py '{"vocab": 4096, ...}' float32 THREADS` runs wherever `trl` can be imported: a
random Qwen3 of that shape, random texts of one length, AdamW and TRL's usual loss, which is made in
chunks. It says when it is ready, then makes as many updates as each line says and answers with
what they took.
"""

import json
import os
import resource
import sys
import tempfile
import time
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models
from trl import SFTConfig, SFTTrainer


def network(shape: dict[str, Any]) -> Any:
    """A random Qwen3 with tied embeddings."""
    kind: Any = transformers.Qwen3Config
    config = kind(
        vocab_size=shape["vocab"], hidden_size=shape["width"], intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"], head_dim=shape["head_dim"],
        max_position_embeddings=shape["positions"], rope_theta=shape["theta"],
        tie_word_embeddings=True, pad_token_id=0, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = transformers.Qwen3ForCausalLM(config)
    return model.float()


def words() -> Any:
    """A tokenizer, which the trainer asks for and the texts, being numbers, do not."""
    made = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, "</s>"))
    kind: Any = transformers.PreTrainedTokenizerFast
    return kind(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")


class Turns(transformers.TrainerCallback):
    """Waits for a line before each round of updates and answers after it."""

    def __init__(self, targets: int) -> None:
        self.targets = targets  # of one update
        self.round = self.left = 0
        self.started = self.processor = 0.0

    def on_step_begin(self, *given: Any, **more: Any) -> None:
        if not self.left:
            line = sys.stdin.readline()
            if not line:
                sys.exit()
            self.round = self.left = int(line)
            self.started, self.processor = time.perf_counter(), time.process_time()

    def on_step_end(self, *given: Any, **more: Any) -> None:
        self.left -= 1
        if not self.left:
            answer = {
                "seconds": time.perf_counter() - self.started,
                "processor_seconds": time.process_time() - self.processor,
                "targets": self.targets * self.round,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
            print(json.dumps(answer), file=ANSWERS, flush=True)


def main() -> None:
    """Trains until there are no more lines."""
    shape, precision, threads = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(threads)
    batch, block = shape["batch"], shape["block"]
    ids = torch.randint(2, shape["vocab"], (512, block), generator=torch.manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, use_cpu=True, bf16=precision == "bfloat16", report_to=[],
            gradient_checkpointing=False, max_length=None, optim="adamw_torch_fused",
            per_device_train_batch_size=batch, max_steps=10**6, save_strategy="no",
            logging_strategy="no", disable_tqdm=True, learning_rate=1e-3, max_grad_norm=1.0,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=network(shape), args=settings, processing_class=words(),
            train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
            callbacks=[Turns(batch * (block - 1))],
        )  # fmt: skip
        print(json.dumps({"ready": "trl"}), file=ANSWERS, flush=True)
        trainer.train()


if __name__ == "__main__":
    ANSWERS, sys.stdout = sys.stdout, sys.stderr  # only answers are lines of our own
    main()
