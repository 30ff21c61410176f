// All kernels of training, for the table of the instruction set that includes this.

#pragma once

#include "cross_entropy.h"
#include "gated.h"
#include "norm.h"
#include "rotary.h"
#include "steps.h"

namespace ince {
namespace {

const Training kTraining = {norm,   norm_grad,     gated,
                            gated_grad, rotate,    cross_entropy,
                            cross_entropy_grad,    step,
                            quantize_8bit,         dequantize_8bit};

}  // namespace
}  // namespace ince
