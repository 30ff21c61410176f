// All kernels of training, for the table of the instruction set that includes this.

#pragma once

#include "gated.h"
#include "norm.h"

namespace ince {
namespace {

const Training kTraining = {norm, norm_grad, gated, gated_grad};

}  // namespace
}  // namespace ince
