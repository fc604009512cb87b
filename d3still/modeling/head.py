"""The embedding head: pooled features → retrieval features → logits."""

from __future__ import annotations

from torch import Tensor, nn

#: Width of the embedding that queries and gallery share.
FEATURE_WIDTH = 512
#: Small, so that training starts from nearly uniform class probabilities (custom in re-identification).
CLASSIFIER_STD = 0.001


class EmbeddingHead(nn.Module):
    """BatchNorm1d → ReLU → Linear → BatchNorm1d, then a classifier without bias.

    Args:
        in_width: channels of the pooled features.
        num_classes: identities of the training set.

    Weights start as is usual in re-identification: batch norm at 1 and 0, the embedding by Kaiming's
    rule (fan out), the classifier normal with standard deviation 0.001.
    """

    def __init__(self, in_width: int, num_classes: int) -> None:
        super().__init__()
        self.add_block = nn.Sequential(
            nn.BatchNorm1d(in_width),
            nn.ReLU(inplace=True),
            nn.Linear(in_width, FEATURE_WIDTH, bias=False),
            nn.BatchNorm1d(FEATURE_WIDTH),
        )
        self.classifier = nn.Linear(FEATURE_WIDTH, num_classes, bias=False)
        nn.init.kaiming_normal_(self.add_block[2].weight, mode="fan_out")
        nn.init.normal_(self.classifier.weight, std=CLASSIFIER_STD)

    def forward(self, pooled_feat: Tensor) -> tuple[Tensor, Tensor]:
        """(B, in_width) features → retrieval features (B, 512), not normalised, and logits (B, classes)."""
        retrieval_feat = self.add_block(pooled_feat)
        return retrieval_feat, self.classifier(retrieval_feat)
