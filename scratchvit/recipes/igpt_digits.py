"""A small iGPT on scikit-learn's handwritten digits: it learns to predict the next pixel, and completes half pictures.

paper     Generative Pretraining from Pixels (iGPT), ICML 2020
command   OMP_NUM_THREADS=1 scratchvit train --recipe igpt_digits
machine   3 minutes of one core of an Intel Xeon (174 s of CPU time; 511 s on a shared one, 23 November 2026)
result    test 1.838 bits per pixel, of 17 greys; a baseline that only uses the frequencies of the greys at each
          position has 2.428. The most probable grey is right for 59.6 % of the pixels

Accuracy of a linear probe (`scratchvit probe RUN`) for the ten classes, on features that were learned without labels:

    layer        0     1     2     3     4
    test, %    85.3  85.6  87.5  86.1  88.3

After 10 epochs with a learning rate of 0.002, it had 2.051 bits per pixel and 82 to 85 %.
"""

from scratchvit.training import TrainConfig

RECIPE = TrainConfig(
    data="digits", model="igpt_tiny", model_args={"num_colors": 17, "proj_drop_rate": 0.1, "pos_drop_rate": 0.1},
    epochs=40, batch_size=32, lr=3e-3, weight_decay=0.1, ema_decay=0.99,
)
