"""Training of students from stored labels: datasets, recipes, losses and the training loop.

::

    maskmill train labels/ --labeled photos/ --recipe weighted -o run/
    torchrun --nproc-per-node 4 -m maskmill train labels/ --labeled photos/ --recipe csl -o run/

A run is a folder:

================  ======================================================================================================
``run.json``      record of the run, written once, before the first step: ``format_version`` (2), ``recipe`` (the
                  :class:`~maskmill.trainer.recipes.Recipe` as plain data), ``model`` (``{"name", "options"}``),
                  ``classes``, ``background`` (index or null), ``ignore`` (index of pixels without a label), ``labels``
                  (class of each label index of the labeled folder, -1 to ignore), ``input`` (the fields of
                  :class:`~maskmill.engine.model.bundle.InputSpec`), ``data`` (training data) and ``versions``
``last.pt``       complete state after the last saved step, from which training resumes
``best.pt``       state with the best mIoU on the validation images; absent without validation
``log.csv``       a row per logged step, see :mod:`maskmill.trainer.log`
``tensorboard/``  the same figures as TensorBoard events
================  ======================================================================================================

A checkpoint is a dictionary of tensors and plain data that ``torch.load(..., weights_only=True)`` reads: ``step``
(finished steps), ``model`` and ``ema`` (state dictionaries of the student; ``ema`` is None if the recipe keeps no
moving average, otherwise it is the student to use), ``optimizer``, ``scaler`` (None without fp16), ``best`` (best mIoU
so far, or None), ``miou`` (mIoU at this step, or None). The file ends in a line with the hash of the preceding bytes; a
file with a wrong or missing hash is refused.

A student is a ``torch.nn.Module``: ``student(images)`` maps (N, 3, H, W) float32, normalized, to logits (N, C, h, w) at
any resolution. It is ``student.decode(student.encode(images))`` with a list of feature maps between the two, so that a
recipe can drop channels of them. ``student.backbone_parameters()`` get the base learning rate and
``student.head_parameters()`` a multiple of it.
"""
