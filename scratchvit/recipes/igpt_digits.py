"""A small iGPT on scikit-learn's handwritten digits: it learns to predict the next pixel, and completes half pictures.

paper     Generative Pretraining from Pixels (iGPT), ICML 2020
command   OMP_NUM_THREADS=1 scratchvit train --recipe igpt_digits
machine   one busy core of an AMD EPYC (Zen 4), 2½ minutes of CPU time (30 November 2026)
result    test 1.851 bits per pixel, of 17 greys; a baseline that only uses the frequencies of the greys at each
          position has 2.428. The most probable grey is right for 59.3 % of the pixels

Accuracy of a linear probe (`scratchvit probe RUN`) for the ten classes, on features that were learned without labels:

    layer        0     1     2     3     4
    test, %    86.7  87.2  86.7  87.2  88.9

After 10 epochs with a learning rate of 0.002, it had 2.051 bits per pixel and 82 to 85 % (23 November 2026).
"""

from scratchvit.training import TrainConfig

RECIPE = TrainConfig(
    data="digits", model="igpt_tiny", model_args={"num_colors": 17, "proj_drop_rate": 0.1, "pos_drop_rate": 0.1},
    epochs=40, batch_size=32, lr=3e-3, weight_decay=0.1, ema_decay=0.99,
)
