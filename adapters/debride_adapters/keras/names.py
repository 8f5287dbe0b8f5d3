"""What a Keras configuration may name: tables of Keras's own parts that hold no code and read no file.

Left out on purpose: Lambda and the layers that wrap another framework's code or model (they run code), lookup and text
layers (they read vocabulary files), recurrent layers (no ONNX loop is handled), base classes, quantised policies.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DIMENSIONS = ("1D", "2D", "3D")
_BY_DIMENSION = _names("""
AdaptiveAveragePooling AdaptiveMaxPooling AveragePooling AvgPool Conv Convolution Cropping GlobalAveragePooling
GlobalAvgPool GlobalMaxPool GlobalMaxPooling MaxPool MaxPooling SpatialDropout UpSampling ZeroPadding
""")
LAYERS = _names("""
Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average
BatchNormalization CenterCrop Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1DTranspose Conv2DTranspose
Conv3DTranspose CutMix Dense DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Equalization Flatten
GaussianDropout GaussianNoise GroupNormalization GroupQueryAttention Identity InputLayer LayerNormalization LeakyReLU
Masking Maximum Minimum MixUp MultiHeadAttention Multiply Normalization PReLU Permute Pipeline RMSNormalization
RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform
RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization
RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom ReLU RepeatVector Rescaling
Reshape Resizing SeparableConv1D SeparableConv2D SeparableConvolution1D SeparableConvolution2D Softmax Solarization
SpectralNormalization Subtract ThresholdedReLU TimeDistributed UnitNormalization
""") | {name + dimension for name in _BY_DIMENSION for dimension in _DIMENSIONS}
MODELS = frozenset(("Functional", "Model", "Sequential"))
INITIALIZERS = _names("""
Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal LecunUniform Ones
Orthogonal OrthogonalInitializer RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros
""")
REGULARIZERS = frozenset(("L1", "L2", "L1L2", "OrthogonalRegularizer"))
CONSTRAINTS = frozenset(("MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"))
POLICIES = frozenset(("DTypePolicy", "DTypePolicyMap", "FloatDTypePolicy", "Policy"))
ACTIVATIONS = _names("""
celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear log_sigmoid
log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus sparse_sigmoid sparsemax
squareplus swish tanh tanh_shrink threshold
""")

MODULES = {
    "keras": MODELS | POLICIES,
    "keras.models": MODELS,
    "keras.src.models.functional": frozenset(("Functional",)),
    "keras.src.models.model": frozenset(("Model",)),
    "keras.src.models.sequential": frozenset(("Sequential",)),
    "keras.layers": LAYERS,
    "keras.initializers": INITIALIZERS,
    "keras.regularizers": REGULARIZERS,
    "keras.constraints": CONSTRAINTS,
    "keras.dtype_policies": POLICIES,
    "keras.mixed_precision": POLICIES,
    "keras.src.applications.convnext": frozenset(("LayerScale", "StochasticDepth")),
    "keras.src.ops.core": frozenset(("Cast", "Slice", "SliceUpdate", "StopGradient", "Unstack")),
}
"""Which classes are let in from which module, exactly."""

OPERATIONS = frozenset(f"keras.src.ops.{name}" for name in ("einops", "image", "linalg", "math", "nn", "numpy"))
"""Modules of operations on tensors alone: all their classes are let in, by the CamelCase that no function has."""

UNNAMED = LAYERS | MODELS | INITIALIZERS | REGULARIZERS | CONSTRAINTS | POLICIES
"""Classes let in where the configuration names no module, as Keras 2 and `.h5` files do."""

VALUES = _names("__keras_tensor__ __slice__ __ellipsis__ __tuple__ __tensor__ __numpy__ __bytes__ TensorShape")
"""Class names that stand for plain values."""

MOVED = {
    "keras.src.engine.functional": "keras.src.models.functional",
    "keras.src.engine.sequential": "keras.src.models.sequential",
    "keras.src.engine.training": "keras.src.models.model",
    "keras.engine.functional": "keras.src.models.functional",
    "keras.engine.sequential": "keras.src.models.sequential",
}
"""Modules of Keras 2 -> where Keras 3 has the same class."""
