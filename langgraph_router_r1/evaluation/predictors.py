"""What guesses from a question's embedding how well each model will do, besides nearest neighbours."""

from __future__ import annotations

import numpy as np

from langgraph_router_r1.strategies.knn import Matrix, Predictor


class LogisticPredictor:
    """A logistic regression a model: how likely its reply is right."""

    def fit(self, embeddings: Matrix, quality: Matrix) -> None:
        """See `Predictor.fit`."""
        from sklearn.dummy import DummyClassifier
        from sklearn.linear_model import LogisticRegression

        self._models = []
        for column in (quality >= 0.5).T:
            # A model that was always right, or never, teaches nothing but that.
            model = (
                DummyClassifier(strategy="prior")
                if column.all() or not column.any()
                else LogisticRegression(max_iter=1000)
            )
            self._models.append(model.fit(embeddings, column))

    def predict(self, embeddings: Matrix) -> Matrix:
        """See `Predictor.predict`."""
        return np.stack(
            [
                model.predict_proba(embeddings)[:, list(model.classes_).index(True)]
                if True in model.classes_
                else np.zeros(len(embeddings))
                for model in self._models
            ],
            axis=1,
        )


def mlp(seed: int) -> Predictor:
    """Return a small neural network that guesses all models' quality together."""
    from sklearn.neural_network import MLPRegressor

    network: Predictor = MLPRegressor(
        hidden_layer_sizes=(64,), alpha=1e-2, early_stopping=True, max_iter=500, random_state=seed
    )
    return network


class ContrastivePredictor:
    """RouterDC's idea on frozen embeddings: questions and models in one space, right pairs near, wrong pairs far.

    The loss is its sample-LLM contrastive loss (arXiv 2409.19886, eq. 4): each model that was right on a question
    against all that were wrong on it. The query encoder is a linear layer over MiniLM, where theirs is fine-tuned.
    """

    def __init__(self, *, dimensions: int = 64, epochs: int = 200, temperature: float = 0.1, seed: int = 0) -> None:
        self.dimensions, self.epochs, self.temperature, self.seed = dimensions, epochs, temperature, seed

    def fit(self, embeddings: Matrix, quality: Matrix) -> None:
        """See `Predictor.fit`."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            encoder = torch.nn.Linear(embeddings.shape[1], self.dimensions)
            models = torch.nn.Parameter(torch.randn(quality.shape[1], self.dimensions))
        questions = torch.tensor(embeddings, dtype=torch.float32)
        right = torch.tensor(quality >= 0.5)
        optimiser = torch.optim.AdamW([*encoder.parameters(), models], lr=1e-2, weight_decay=1e-2)
        for _ in range(self.epochs):
            near = torch.nn.functional.cosine_similarity(encoder(questions)[:, None], models[None], dim=-1)
            near = near / self.temperature
            wrong = near.masked_fill(right, -torch.inf).logsumexp(dim=1, keepdim=True)
            # A question that all got right, or none, tells models apart by nothing.
            tells = right & torch.isfinite(wrong)
            if not tells.any():
                break
            loss = (torch.logaddexp(near, wrong) - near)[tells].mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        self._encoder, self._models = encoder, models

    def predict(self, embeddings: Matrix) -> Matrix:
        """Return the similarity of questions and models, 0 to 1."""
        import torch

        with torch.no_grad():
            encoded = self._encoder(torch.tensor(embeddings, dtype=torch.float32))
            near = torch.nn.functional.cosine_similarity(encoded[:, None], self._models[None], dim=-1)
        similarity: Matrix = (near.double().numpy() + 1) / 2
        return similarity
