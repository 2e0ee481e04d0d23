"""CE: fine-tuning on clean images against the class texts, the paper's baseline without an adversary.

Source: the authors' switch that removes the attack and keeps the text head (facts 5):

    L = (1/B) sum_i CE( s cos(f(x_i), T), y_i )

x_i is the clean image, T the frozen text features of all K source classes. It is TeCoA's loss where no
adversary moves the image. Whether the paper's clean rows used the texts is unknown.
"""

from __future__ import annotations

from typing import ClassVar

from zsrobust.objectives.tecoa import Tecoa


class Ce(Tecoa):
    """TeCoA's loss at the clean images; arguments as there."""

    name: ClassVar[str] = "ce"
    adversarial: bool = False
